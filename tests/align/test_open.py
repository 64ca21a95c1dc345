"""Adapters opened with their base in memory, held-out files tokenized on the fly, and `plamo2 inspect`."""

import json
import lzma
import shutil

import jax
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.open import model_folders, open_model
from plamo2_jax.adapters.peft import write_run_adapter
from plamo2_jax.align.sft import Sft
from plamo2_jax.checkpoint import fingerprint
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.documents import Document
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.models.config import ChatModelConfig
from plamo2_jax.models.local import LocalChatModel
from plamo2_jax.serve.config import ServeConfig
from plamo2_jax.serve.opening import open_models
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.train.config import RunConfig, to_json

LORA = LoraConfig(rank=2, targets=("/mlp/", "q_proj"))


@pytest.fixture(scope="module")
def adapters(small):
    """Adapters that change what the model says."""
    made = Adapters(small.config, LORA)
    leaves, structure = jax.tree.flatten(made.create(None))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.fixture
def run(tmp_path, base, data, fields, rows_of, small, small_params, adapters, tokenizer):
    """A run folder with adapters, as training leaves it, with a base of its own."""
    own = shutil.copytree(base, tmp_path / "base")
    config = RunConfig(
        **{
            **fields,
            "init_from": own,
            "name": "run",
            "output": tmp_path,
            "data": rows_of(data / "chat-a.jsonl"),
            "task": Sft(lora=LORA),
        }
    )
    checkpoint.save_model(config.folder, small.config, adapters, tokenizer)
    (config.folder / "manifest.json").unlink(missing_ok=True)
    described = {**to_json(config), "base_fingerprint": fingerprint(small.config, small_params)}
    checkpoint.write_json(config.folder / "config.json", described)
    return config


def test_adapters_are_added_to_the_base_of_their_run(run, small, small_params, adapters):
    opened = open_model(run.folder)
    expected = Adapters(small.config, LORA).merge(small_params, adapters)
    jax.tree.map(np.testing.assert_array_equal, opened.params, expected)
    assert (opened.config, opened.tokenizer is not None) == (small.config, True)
    # The same from PEFT's layout, which names the base too.
    peft = open_model(write_run_adapter(run.folder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), peft.params, expected)
    about = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = f"{run.init_from}@0"
    (run.folder / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    jax.tree.map(np.testing.assert_array_equal, open_model(run.folder / "adapter").params, peft.params)
    # And a model is opened as ever.
    jax.tree.map(np.testing.assert_array_equal, open_model(run.init_from).params, load_model(run.init_from).params)


def test_the_base_must_be_there_and_be_the_one_of_training(run, small, small_params, tokenizer):
    shutil.rmtree(run.init_from)
    with pytest.raises(ValueError, match=r"has adapters for .*base, which cannot be opened: .* plamo2 lora MODEL"):
        open_model(run.folder)
    checkpoint.save_model(
        run.init_from, small.config, {**small_params, "embedding": 2 * small_params["embedding"]}, tokenizer
    )
    with pytest.raises(ValueError, match=r"adapters for an earlier version of .*base, whose weights have changed"):
        open_model(run.folder)
    described = checkpoint.read_config(run.folder)
    checkpoint.write_json(run.folder / "config.json", {**described, "init_from": None})
    with pytest.raises(ValueError, match=r"init_from is 'None': it must be the base model of the adapters"):
        open_model(run.folder)


def test_a_peft_folder_without_a_base_here_names_the_verb(run, tmp_path):
    adapter = write_run_adapter(run.folder)
    about = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": "someone/model"}))
    with pytest.raises(
        ValueError, match=r"base, 'someone/model', is not a folder on this machine\. .* plamo2 lora MODEL"
    ):
        open_model(adapter)


def test_the_chat_template_is_that_of_the_run_or_of_the_base(run, tmp_path):
    adapter = write_run_adapter(run.folder)
    elsewhere = shutil.copytree(adapter, tmp_path / "elsewhere")
    (run.init_from / "chat_template.jinja").write_text("base")
    (run.folder / "chat_template.jinja").unlink(missing_ok=True)
    for folder in (run.init_from, run.folder, adapter, elsewhere):
        assert ChatTemplate.of_model(*model_folders(folder)).source == "base"
    (run.folder / "chat_template.jinja").write_text("run")
    found = [ChatTemplate.of_model(*model_folders(folder)).source for folder in (run.folder, adapter, elsewhere)]
    assert found == ["run", "run", "base"]
    assert LocalChatModel.open(ChatModelConfig(str(adapter))).template.source == "run"
    (model,) = open_models(elsewhere, ServeConfig(slots=1, warm_up=False))
    assert model.template.source == "base"


def test_adapters_are_merged_in_the_wanted_dtype_and_another_base_is_noted(
    run, small, small_params, adapters, tmp_path, capsys
):
    assert main(["lora", str(run.init_from), str(run.folder), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "was trained on" not in capsys.readouterr().err
    merged = load_model(tmp_path / "half").params
    rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), small_params)
    expected = Adapters(small.config, LORA).merge(rounded, adapters)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float32)), merged, expected)
    shutil.copytree(run.init_from, tmp_path / "other")
    assert main(["lora", str(tmp_path / "other"), str(run.folder), str(tmp_path / "out")]) == 0
    assert "base'; it is used with" in capsys.readouterr().err


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tokenizer):
    """One text as shards, as JSON lines and as plain text."""
    folder = tmp_path_factory.mktemp("texts")
    text = "The first line of the text.\nThe second one, a little longer than the first.\n"
    (folder / "plain.txt").write_text(text)
    (folder / "lines.jsonl").write_text(json.dumps({"text": text}) + "\n")
    write_shards([Document(text, "a", {})], tokenizer, folder / "shards", progress=False)
    return folder, text


def test_files_are_measured_as_shards_are_and_conversations_by_their_answers(run, texts, data, tmp_path, capsys):
    """The base; held-out files of three kinds in one call."""
    folder, text = texts
    names = {"shards": folder / "shards", "plain": folder / "plain.txt", "lines": folder / "lines.jsonl"}
    heldout = [f"{name}={path}" for name, path in {**names, "chat": data / "chat-heldout.jsonl"}.items()]
    out = tmp_path / "figures.json"
    shape = ["--sequence-length", "96", "--batch-size", "2"]
    assert main(["evaluate", str(run.init_from), "--heldout", *heldout, "--output", str(out), *shape]) == 0
    said = capsys.readouterr().out
    assert "perplexity" in said
    found = json.loads(out.read_text())["languages"]
    assert found["shards"] == found["plain"] == found["lines"]
    plain = found["plain"]
    assert plain["bytes"] == len(text.encode())
    assert plain["xz_bits_per_byte"] == 8 * len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)) / len(
        text
    )
    assert plain["perplexity"] == pytest.approx(np.exp(plain["nats"] / plain["tokens"]))
    chat = found["chat"]
    # Four answers of three letters, and an end for each.
    assert (chat["documents"], chat["bytes"]) == (4, 12)
    assert "xz_bits_per_byte" not in chat
    # With its adapters the model says something else.
    assert main(["evaluate", str(run.folder), "--heldout", heldout[1], "--output", str(out), *shape]) == 0
    assert json.loads(out.read_text())["languages"]["plain"]["nats"] != plain["nats"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "it must be a file, a folder or a pattern"),
        ("empty.jsonl", "", "holds no document"),
        ("bad.jsonl", '{"messages": 1}\n', "line 1"),
        ("blank.txt", " \n", "nothing but white space"),
    ],
)
def test_held_out_files_that_cannot_be_read_are_one_sentence(base, tmp_path, name, content, message, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["evaluate", str(base), "--heldout", f"x={tmp_path / name}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert name in error
    assert main(["evaluate", str(base), "--heldout", "held.txt"]) == 2
    assert "must be NAME=PATH" in capsys.readouterr().err


def inspect(capsys, *arguments):
    status = main(["inspect", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_run_folder_is_described(base, small, small_params, tokenizer, capsys):
    status, facts = inspect(capsys, base, "--tensors", "--verify")
    count = small.config.parameter_count()
    assert (status, facts["kind"], facts["steps"], facts["layers"]) == (0, "run folder", [0], 1)
    assert (
        facts["parameters"]["total"]
        == facts["model_parameters"]
        == count
        == sum(list(facts["parameters"].values())[1:])
    )
    assert facts["parameters"]["embedding"] == small_params["embedding"].size
    assert (facts["dtypes"], facts["bytes"]) == ({"float32": count}, 4 * count)
    assert facts["tokenizer"] == {"rows": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
    assert facts["layer_pattern"] == "1 x (window)"
    assert facts["axes"]["vocab"] == 864
    assert facts["checksums"] == "all files match their checksums"
    names = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert names["embedding"]["axes"] == ["vocab", "embed"]
    assert names["embedding"]["shape"] == [864, 32]
    assert main(["inspect", str(base), "--tensors"]) == 0
    text = capsys.readouterr().out
    assert f"{count:,}: " in text
    assert "embedding  float32  [864, 32]  vocab,embed" in text


def test_the_public_layout_adapters_and_shards_are_described(run, base, texts, small, tmp_path, capsys):
    assert main(["convert", "to-hf", str(base), str(tmp_path / "public")]) == 0
    capsys.readouterr()
    _, public = inspect(capsys, tmp_path / "public", "--tensors")
    assert public["kind"] == "folder in Hugging Face format"
    _, ours = inspect(capsys, base)
    assert {**public["parameters"]} == ours["parameters"]
    assert "model.embed_tokens.weight" in {tensor["name"] for tensor in public["tensors"]}
    _, adapted = inspect(capsys, run.folder)
    assert (adapted["trained"], adapted["base"]) == ("fine-tuning, adapters", str(run.init_from))
    assert adapted["lora"] == {"rank": 2, "alpha": 32.0}
    assert 0 < adapted["parameters"]["total"] < adapted["model_parameters"]
    _, peft = inspect(capsys, write_run_adapter(run.folder))
    assert (peft["kind"], peft["base"]) == ("adapters in PEFT's layout", str(run.init_from))
    _, shards = inspect(capsys, texts[0] / "shards")
    assert (shards["kind"], shards["documents"]) == ("folder of shards", 1)
    for folder in (run.folder, run.folder / "adapter", texts[0] / "shards"):
        assert main(["inspect", str(folder)]) == 0


def test_a_damaged_folder_is_described_as_far_as_it_goes(base, small, tmp_path, capsys):
    copy = shutil.copytree(base, tmp_path / "copy")
    path = max((copy / "checkpoints").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    status, facts = inspect(capsys, copy)
    assert (status, facts["checksums"]) == (0, "present, not compared (--verify)")
    status, facts = inspect(capsys, copy, "--verify")
    assert status == 1
    assert facts["checksums"].startswith("damaged: params/")
    assert main(["inspect", str(copy), "--step", "7"]) == 2
    assert "has no finished checkpoint of step 7" in capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints")
    _, facts = inspect(capsys, copy)
    assert facts["steps"] == []
    assert facts["model_parameters"] == small.config.parameter_count()
    assert main(["inspect", str(tmp_path)]) == 2
