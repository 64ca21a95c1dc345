"""The Python files of `convert to-hf --with-code` in transformers: our logits, our greedy tokens, our ids, and training."""

import jax
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.corpus import documents
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.train import VocabularyOptions, train_tokenizer

pytestmark = pytest.mark.peer

transformers = pytest.importorskip("transformers", reason="transformers is not installed (make peers installs it)")
torch = pytest.importorskip("torch", reason="torch is not installed (make peers installs it)")

CONFIGS = {
    # A window that texts exceed, a layer with full attention, one RoPE base for each.
    "two kinds of attention": preset("tiny", attention_window_size=20, full_attention_idx=(3,), rope_local_theta=5e3),
    "untied, six layers, one key head": preset(
        "tiny", num_hidden_layers=6, mamba_step=3, num_key_value_heads=1, tie_word_embeddings=False, rope_theta=1e6
    ),
}


@pytest.fixture(scope="module")
def texts():
    return [document["text"] for language in ("ja", "en") for document in documents(language, "heldout")]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, VocabularyOptions(vocab_size=2048), progress=False)


@pytest.fixture(scope="module", params=CONFIGS)
def export(request, tokenizer, tmp_path_factory):
    """Random parameters, exported from a run folder."""
    home = tmp_path_factory.mktemp("remote_code")
    config = CONFIGS[request.param]
    params = jax.jit(lambda key: init_params(Plamo2(config), key))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    # Away from the initial zeros and ones of norms and scales.
    noisy = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    checkpoint.save_model(home / "run", config, jax.tree.unflatten(tree, noisy), tokenizer)
    assert main(["convert", "to-hf", str(home / "run"), str(home / "export"), "--with-code"]) == 0
    return home / "export"


@pytest.fixture(scope="module")
def theirs(export):
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, info = load(export, trust_remote_code=True, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    assert model.generation_config.eos_token_id == [2, 1, 4]
    return model.eval()


@pytest.fixture(scope="module")
def ours(export):
    return load_model(export)


def tokens_of(ours, length, rows=2):
    return np.random.default_rng(0).integers(7, ours.tokenizer.vocab_size, (rows, length))


def distance(left, right):
    return np.linalg.norm(left - right) / np.linalg.norm(right)


def test_logits_are_ours(ours, theirs):
    tokens = tokens_of(ours, 150)
    expected, _ = jax.jit(Plamo2(ours.config).apply)({"params": ours.params}, tokens)
    with torch.no_grad():
        actual = theirs(torch.tensor(tokens)).logits.numpy()
    print(f"relative L2 distance of logits: {distance(actual, expected):.1e}")
    assert distance(actual, expected) < 1e-5
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


@torch.no_grad()
def test_pieces_and_padding_change_nothing(ours, theirs):
    tokens = torch.tensor(tokens_of(ours, 90))
    whole = theirs(tokens).logits
    cache, pieces = None, []
    for piece in tokens.split((1, 40, 2, 47), dim=1):
        outputs = theirs(piece, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        pieces.append(outputs.logits)
    assert cache.get_seq_length() == 90
    assert distance(torch.cat(pieces, 1), whole) < 1e-5
    for left, right in ((7, 0), (0, 7)):
        padded = torch.nn.functional.pad(tokens[:1], (left, right), value=3)
        mask = torch.nn.functional.pad(torch.ones_like(tokens[:1]), (left, right))
        logits = theirs(padded, attention_mask=mask).logits
        assert distance(logits[:, left : left + 90], whole[:1]) < 1e-5


def test_generate_takes_our_greedy_tokens(ours, theirs):
    prompts = [row.tolist() for row in tokens_of(ours, 30)]
    prompts[1] = prompts[1][5:]
    generator = Generator(Plamo2(ours.config), ours.params, None)
    greedy = {"sampling": SamplingConfig(temperature=0), "stop": StopConfig(max_new_tokens=40, ids=())}
    expected = [list(done.token_ids) for done in generator.generate(prompts, **greedy)]
    padded = torch.tensor([[3] * (30 - len(prompt)) + prompt for prompt in prompts])
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    actual = theirs.generate(padded, attention_mask=(padded != 3).long(), **settings)
    assert actual[:, 30:].tolist() == expected
    assert theirs.generate(padded[:1], num_beams=3, **settings).shape == (1, 70)


def test_the_tokenizer_is_exact(export, ours, texts):
    theirs = transformers.AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    assert type(theirs).__name__ == "Plamo2Tokenizer"
    for text in (*(text[:2000] for text in texts), "<0x41>𩸽と🐟 ﷽\u0000\t", " \n\n\n  ", ""):
        ids = ours.tokenizer.encode(text).tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs(text)["input_ids"] == [1, *ids]
        assert theirs.decode(ids) == text
    control = "a<|plamo:op|> b<|plamo:eos|>"
    assert theirs(control)["input_ids"] == ours.tokenizer.encode(control, bos=True, allow_control=True).tolist()
    assert theirs.decode(theirs(control)["input_ids"], skip_special_tokens=True) == "a b"
    assert theirs.decode([*ours.tokenizer.encode("猫🐟")[:-1]]) == ours.tokenizer.decode(
        ours.tokenizer.encode("猫🐟")[:-1]
    )


def test_gradients_with_and_without_checkpointing(ours, theirs):
    tokens = torch.tensor(tokens_of(ours, 100))
    losses, gradients = [], []
    theirs.train()
    for recompute in (False, True):
        if recompute:
            theirs.gradient_checkpointing_enable()
        theirs.zero_grad()
        loss = theirs(tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in theirs.parameters()]))
    theirs.gradient_checkpointing_disable()
    theirs.eval()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert distance(gradients[0], gradients[1]) < 1e-5
    assert (gradients[0] != 0).float().mean() > 0.3
    logits, _ = jax.jit(Plamo2(ours.config).apply)({"params": ours.params}, tokens.numpy())
    log_probs = np.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens.numpy()[:, 1:, None], 2)
    assert losses[0] == pytest.approx(float(-log_probs.mean()), rel=1e-5)


def test_what_transformers_saves_is_read_back(ours, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "saved")
    saved = load_model(tmp_path / "saved")
    assert saved.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, saved.params, ours.params)


def test_lm_eval_scores_the_export(export, ours):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval is not installed")
    api = pytest.importorskip("lm_eval.api.instance")
    model = huggingface.HFLM(pretrained=str(export), trust_remote_code=True, device="cpu", dtype="float32")
    context, answer = "日本語の文書を", "読む。"
    request = api.Instance("loglikelihood", {}, (context, answer), 0)
    ((score, _),) = model.loglikelihood([request])
    left = ours.tokenizer.encode(context, bos=True)
    ids = np.concatenate([left, ours.tokenizer.encode(answer)])
    logits, _ = jax.jit(Plamo2(ours.config).apply)({"params": ours.params}, ids[None, :-1])
    log_probs = np.asarray(jax.nn.log_softmax(logits[0]))[np.arange(len(ids) - 1), ids[1:]]
    assert score == pytest.approx(log_probs[len(left) - 1 :].sum(), rel=1e-5)


def test_trl_fine_tunes_the_export(export, texts, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed (make peers installs it)")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True, dtype=torch.float32)
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "bf16": False,
    }
    args = trl.SFTConfig(
        output_dir=str(tmp_path), max_length=64, report_to=[], use_cpu=True, save_strategy="no", **settings
    )
    data = datasets.Dataset.from_dict({"text": [text[:300] for text in texts[:4]]})
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
