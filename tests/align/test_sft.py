"""Fine-tuning: weights of the loss, noise, mixtures, and runs of the whole model and of adapters."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax import checkpoint, models
from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.open import open_model
from plamo2_jax.adapters.peft import merged_model
from plamo2_jax.align.chat import Example
from plamo2_jax.align.samples import SamplesConfig, SampleWriter
from plamo2_jax.align.sft import ChatConfig, Sft, neftune, noise_scale, read_examples, to_element
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.pipeline import MixtureItem
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2, abstract_params
from plamo2_jax.storage import lock_folder
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.loop import train
from plamo2_jax.train.metrics import read_metrics
from plamo2_jax.train.pretraining import next_token
from plamo2_jax.train.trainable import load_params
from support.runs import assert_same_params, record, stop_after


@pytest.fixture(scope="module")
def make_config(tmp_path_factory, data, fields, rows_of):
    output = tmp_path_factory.mktemp("runs")

    def make(name, **other):
        of_task = {field.name: other.pop(field.name) for field in dataclasses.fields(Sft) if field.name in other}
        return RunConfig(
            **{
                **fields,
                "name": name,
                "task": Sft(**of_task),
                "data": rows_of(data / "chat-a.jsonl", data / "chat-b.jsonl"),
                "heldout": {"chat": data / "chat-heldout.jsonl"},
                "output": output,
                **other,
            }
        )

    return make


def source_of(config, tokenizer):
    return config.task.make_source(config, tokenizer)


def test_weights_by_token_and_by_conversation():
    example = Example(np.arange(6, dtype=np.int32), np.array([False, False, True, False, True, True]))
    by_token = to_element(example, "token")
    assert by_token["tokens"].tolist() == [0, 1, 2, 3, 4]
    assert by_token["targets"].tolist() == [1, 2, 3, 4, 5]
    assert by_token["weights"].tolist() == [0, 1, 0, 1, 1]
    np.testing.assert_allclose(to_element(example, "conversation")["weights"], np.array([0, 1, 0, 1, 1]) / 3)


def test_noise_is_as_wide_as_the_conversation_is_long():
    ids = jnp.array([[1, 1, 1, 2, 0]])
    expected = 5 / np.sqrt(np.array([3, 3, 3, 1, np.inf]) * 16)
    np.testing.assert_allclose(noise_scale(ids, 16, 5.0)[0], expected, rtol=1e-6)


def test_rows_decode_to_conversations_and_weights_to_answers(make_config, tokenizer, capsys):
    source = source_of(make_config("x"), tokenizer)
    batches = source.train(0, 1)
    assert "chat-a.jsonl: 8 conversations" in capsys.readouterr().err
    seen = set()
    for batch in itertools.islice(batches, 4):
        for row in range(2):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                here = batch["segment_ids"][row] == segment
                answer = tokenizer.decode(batch["targets"][row][here & (batch["loss_weights"][row] > 0)])
                letter = answer[0]
                assert answer == letter * 3 + "<|plamo:eos|>"
                assert f"user\n{letter}?\n" in tokenizer.decode(batch["tokens"][row][here])
                seen.add(letter)
    assert seen & set("abcdefgh")
    assert seen & set("ijklmnop")
    heldout = [batch["loss_weights"].sum() for batch in source.heldout("chat", 0, 1)]
    assert sum(heldout) == 4 * len(tokenizer.encode("aaa", eos=True))


def test_what_is_not_trained_on_is_not_read_and_bad_data_leave_no_run(make_config, data, tokenizer, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("not json\n", encoding="utf-8")
    config = make_config("unread")
    mixture = dataclasses.replace(config.data, mixture=(MixtureItem(bad),))
    to_measure = dataclasses.replace(config, output=tmp_path, data=mixture)
    assert list(source_of(to_measure, tokenizer).heldout("chat", 0, 1))
    for other in (to_measure, dataclasses.replace(config, output=tmp_path, heldout={"chat": bad})):
        with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: not JSON.*raise chat\.max_bad_rate"):
            train(other)
        assert not other.folder.exists()
    missing = dataclasses.replace(config, output=tmp_path, heldout={"chat": tmp_path / "no.jsonl"})
    with pytest.raises(
        ValueError, match=r"heldout\['chat'\]: .*no\.jsonl does not exist.*set heldout=\{\} in the config"
    ):
        train(missing)
    assert not missing.folder.exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (0, r"empty.jsonl has no conversation: at least one is needed"),
        (1, r"empty.jsonl has no conversation of at most 5 tokens: raise data.sequence_length, or use another chat"),
    ],
    ids=["no lines", "too long"],
)
def test_without_conversations_the_file_is_named(data, tokenizer, tmp_path, lines, message):
    path = tmp_path / "empty.jsonl"
    path.write_text("".join((data / "chat-a.jsonl").read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(PlamoError, match=message):
        read_examples(path, ChatConfig(), 4, ChatTemplate.load("chat"), tokenizer)


def test_the_mixture_keeps_to_its_weights(make_config, data, tokenizer):
    config = make_config("x")
    items = (MixtureItem(data / "chat-a.jsonl", 3.0), MixtureItem(data / "chat-b.jsonl", 1.0))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=items))
    counts = {True: 0, False: 0}
    for batch in itertools.islice(source_of(config, tokenizer).train(0, 1), 40):
        for target in batch["targets"][batch["loss_weights"] > 0]:
            if target != tokenizer.eos_id:
                counts[tokenizer.decode([target])[0] < "i"] += 1
    assert 0.65 < counts[True] / sum(counts.values()) < 0.85


def test_noise_changes_the_loss(make_config, small, small_params, tokenizer):
    batch = next(iter(source_of(make_config("x"), tokenizer).train(0, 1)))
    lengths = jnp.ones(864, jnp.int32)
    plain, noisy = (next_token(small, lengths, 1e-4, noise=noise) for noise in (None, neftune(32, 5.0)))
    key = jax.random.key(0)
    # One program: what they share is compiled once.
    losses = jax.jit(lambda *args: [loss_fn(*args)[0] for loss_fn in (plain, noisy)])(small_params, batch, key)
    assert 1e-6 < abs(losses[1] - losses[0]) < 1


ASKED = SamplesConfig(("a?", "j?"), max_new_tokens=8)


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(make_config):
    """A run of the whole model, with NEFTune, that is asked something on its way."""
    config = make_config("whole", neftune_alpha=1.0, samples=ASKED, evaluate_every=3)
    return config, train(config)


def test_a_run_learns_its_conversations(whole, tokenizer):
    config, outcome = whole
    lines = record(config)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert (
        outcome.heldout["chat"].loss == [line["heldout/chat/loss"] for line in lines if "heldout/chat/loss" in line][-1]
    )
    assert "{%- generation -%}" in (config.folder / "chat_template.jinja").read_text()
    described = json.loads((config.folder / "config.json").read_text())
    assert len(described["examples"]) == 2
    # Speed counts prompts too.
    lines = [line for line in read_metrics(config.folder / "metrics.jsonl") if "loss" in line]
    batches = list(itertools.islice(source_of(config, tokenizer).train(0, 1), 3))
    read = [np.count_nonzero(batch["segment_ids"]) for batch in batches]
    assert [line["tokens"] for line in lines[:3]] == read
    trained = sum(np.count_nonzero(batch["loss_weights"]) for batch in batches)
    speeds = lines[0]["tokens_per_second"], lines[0]["trained_tokens_per_second"]
    assert speeds[0] / speeds[1] == pytest.approx(sum(read) / trained)
    assert sum(read) > trained > 0
    assert load_model(config.folder).tokenizer is not None


def test_a_stopped_run_goes_on_bit_for_bit(whole, make_config):
    config = make_config("stopped", neftune_alpha=1.0, samples=ASKED, evaluate_every=3)
    assert train(config, on_step=stop_after(4)).step == 4
    train(config)
    assert record(config) == record(whole[0])
    assert samples_of(config.folder) == samples_of(whole[0].folder)
    assert [(line["step"], line["prompt"]) for line in samples_of(config.folder)] == [
        (step, prompt) for step in (3, 6) for prompt in ("a?", "j?")
    ]
    shapes = abstract_params(Plamo2(config.model))
    assert_same_params(*(checkpoint.restore_params(c.folder, shapes) for c in (config, whole[0])))


def test_adapters_alone_are_trained_and_added(make_config, small_params, base, tmp_path, capsys):
    """Through the command line: train, write PEFT's layout, add, export."""
    lora = LoraConfig(rank=2, dropout=0.1, targets=("/mlp/", "q_proj"))
    config = make_config("adapters", lora=lora)
    path = tmp_path / "config.py"
    path.write_text(
        "from pathlib import *\nfrom plamo2_jax.adapters.config import *\nfrom plamo2_jax.align.samples import *\n"
        "from plamo2_jax.align.sft import *\nfrom plamo2_jax.config import *\nfrom plamo2_jax.engine.sampling import *\n"
        "from plamo2_jax.data.pipeline import *\nfrom plamo2_jax.sharding.mesh import *\nfrom plamo2_jax.train.config import *\n"
        f"from plamo2_jax.train.loss_guard import *\nfrom plamo2_jax.train.optimizer import *\n"
        f"from plamo2_jax.train.schedule import *\nconfig = {config!r}\n"
    )
    asked = ["--samples.prompts", "a?", "日本", "--samples.max-new-tokens", "8"]
    assert main(["sft", str(path), "--chat.weighting", "conversation", *asked]) == 0
    assert "held-out chat: " in capsys.readouterr().out
    losses = [line["loss"] for line in record(config) if "loss" in line]
    assert losses[-1] < losses[0]
    adapters = checkpoint.restore_params(config.folder, Adapters(config.model, lora).abstract)
    expected = Adapters(config.model, lora).merge(small_params, adapters)
    with pytest.raises(ValueError, match=r"holds adapters, not a model\. Merge them into a model: plamo2 lora MODEL"):
        load_model(config.folder)
    for command in (["convert", "to-hf", config.folder], ["merge", base, config.folder]):
        assert main([*map(str, command), str(tmp_path / "out")]) == 2
        assert (
            f"{config.folder} holds adapters, not a model. Merge them into a model: plamo2 lora MODEL"
            in capsys.readouterr().err
        )
    # It can be asked as it is: the base is that of its configuration.
    jax.tree.map(np.testing.assert_array_equal, open_model(config.folder).params, expected)
    assert main(["generate", str(config.folder), "--prompt", "a", "--max-new-tokens", "2", "--temperature", "0"]) == 0
    capsys.readouterr()
    assert main(["lora", str(base), str(config.folder), str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "chat_template.jinja").is_file()
    # What the run wrote down is what the model with its adapters says.
    greedy, stop = SamplingConfig(0.0), StopConfig(max_new_tokens=8)
    replies = models.open(tmp_path / "one").chat(
        [
            models.ChatRequest(text, [{"role": "user", "content": text}], sampling=greedy, stop=stop)
            for text in ("a?", "日本")
        ]
    )
    assert [line["text"] for line in samples_of(config.folder)] == [reply[0].text for reply in replies]
    assert {line["step"] for line in samples_of(config.folder)} == {6}
    for merged in (load_model(tmp_path / "one").params, merged_model(base, config.folder / "adapter").params):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged, expected)
    assert np.array_equal(merged["embedding"], small_params["embedding"])
    assert main(["convert", "to-hf", str(tmp_path / "one"), str(tmp_path / "public")]) == 0
    assert (tmp_path / "public" / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neftune_alpha": -1.0}, r"Sft.neftune_alpha=-1.0 is not allowed"),
        ({"z_loss": -1.0}, r"Sft.z_loss=-1.0 is not allowed"),
        ({"lora": LoraConfig(), "init_from": None}, "init_from=None is not allowed with lora"),
        ({"chat": {"max_bad_rate": 1.0}}, "max_bad_rate=1.0"),
    ],
)
def test_settings_out_of_range(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config("x", **{k: ChatConfig(**v) if k == "chat" else v for k, v in changes.items()})


def test_samples_that_cannot_be_asked_are_refused(make_config, tmp_path):
    with pytest.raises(ValueError, match=r"SamplesConfig.prompts=\(' ',\) is not allowed"):
        SamplesConfig((" ",))
    strict = tmp_path / "strict.jinja"
    strict.write_text("{{ raise_exception('a system message comes first') }}")
    with pytest.raises(ValueError, match=r"samples.prompts\[0\]: the chat template refuses it"):
        SampleWriter(make_config("x"), ASKED, str(strict))
    strict.write_text("{{ '' }}")
    with pytest.raises(ValueError, match=r"samples.prompts\[0\] has 0 tokens in the chat template"):
        SampleWriter(make_config("x"), ASKED, str(strict))
    config = make_config("x", output=tmp_path)
    short = dataclasses.replace(config, model=dataclasses.replace(config.model, max_position_embeddings=64))
    with pytest.raises(
        ValueError, match=r"\[1\] has 118 tokens .* samples.max_new_tokens=8 no more than the model's 64"
    ):
        SampleWriter(short, SamplesConfig(("a?", "b" * 100), max_new_tokens=8), "chat")
    config.folder.mkdir()
    (config.folder / "samples.jsonl").write_text('{"prompt": "a?"}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 1, must be an object with an integer"):
        SampleWriter(config, ASKED, "chat")


def test_control_strings_in_samples_are_named(make_config, tmp_path, capsys):
    SampleWriter(make_config("x", output=tmp_path), SamplesConfig(("a?", "<|plamo:op|>a"), max_new_tokens=8), "chat")
    assert "warning: <|plamo:op|> in samples.prompts[1] is encoded as text" in capsys.readouterr().err


def test_a_run_in_use_is_refused(make_config, tmp_path):
    config = make_config("used", output=tmp_path, samples=ASKED)
    with lock_folder(config.folder), pytest.raises(ValueError, match="used is in use by another process"):
        train(config)
    assert [path.name for path in config.folder.iterdir()] == [".lock"]


def test_a_model_of_another_shape_is_refused(base, small):
    other = Plamo2(dataclasses.replace(small.config, intermediate_size=16))
    with pytest.raises(ValueError, match="has a different shape than `model` of this run"):
        load_params(base, other.config, None)
