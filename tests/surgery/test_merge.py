"""Merging whole folders: layouts, names, refusals, memory."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from plamo2_jax.cli.main import main
from plamo2_jax.convert.hf import from_public
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.names import ModelName
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.merge import merge
from plamo2_jax.surgery.merge.sources import MergeError, open_source
from support.checkpoints import CONFIG, write_public


def random_model(seed):
    rng = np.random.default_rng(seed)
    return {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in public_tensors(CONFIG)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models and a base of the public layout, and run folders of the same."""
    home = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "base")):
        write_public(home / name, random_model(seed))
        from_public(home / name, home / f"{name}-run")
    return home


def test_public_folders_and_run_folders_merge_to_the_same(models, tmp_path):
    config = MergeConfig("dare_ties", density=0.4)
    merge([str(models / "a"), str(models / "b")], tmp_path / "one", config, base=str(models / "base"))
    runs = [str(models / "a-run@0"), str(models / "b-run")]
    merge(runs, tmp_path / "two", config, base=str(models / "base-run"), max_shard_bytes=200_000)
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 2
    one, two = load_model(tmp_path / "one"), load_model(tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert json.loads((tmp_path / "two" / "merge.json").read_text())["models"] == runs
    assert not list(tmp_path.glob(".*partial*"))


def test_weights_by_regular_expression(models, tmp_path):
    a, b = (load_file(models / name / "model.safetensors") for name in ("a", "b"))
    argv = ["merge", str(models / "a"), str(models / "b"), str(tmp_path / "out"), "--weight", "3", "1"]
    assert main([*argv, "--weights-for", r"layers\.2\.=0,1", "axes=.*mlp=1,0"]) == 0
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, share in (
        ("model.embed_tokens.weight", 0.25),
        ("model.layers.layers.2.mixer.in_proj.weight", 1.0),
        ("model.layers.layers.2.mlp.down_proj.weight", 0.0),
    ):
        np.testing.assert_allclose(merged[name], (1 - share) * a[name] + share * b[name], rtol=1e-5, atol=1e-6)


def test_bfloat16_out(models, tmp_path):
    merge([str(models / "a"), str(models / "a")], tmp_path / "out", MergeConfig("slerp"), dtype="bfloat16")
    source = open_source(str(tmp_path / "out"))
    tensor = public_tensors(CONFIG)[0]
    expected = random_model(0)[tensor.name]
    np.testing.assert_allclose(source.read(tensor), expected, rtol=2**-8)
    assert source.dtype.name == "bfloat16"


def test_a_model_and_itself_is_itself(models, tmp_path):
    for method in ("linear", "karcher"):
        merge([str(models / "a"), str(models / "a-run")], tmp_path / method, MergeConfig(method))
        merged = load_file(tmp_path / method / "model.safetensors")
        for name, array in random_model(0).items():
            np.testing.assert_allclose(merged[name], array, rtol=1e-5, atol=1e-6)


def test_names_of_checkpoints():
    assert ModelName.parse("runs/x@12") == ModelName(Path("runs/x"), 12)
    assert ModelName.parse("runs/x@12,ema") == ModelName(Path("runs/x"), 12, True)
    assert ModelName.parse("runs/x@ema") == ModelName(Path("runs/x"), None, True)
    assert ModelName.parse("a@b/x") == ModelName(Path("a@b/x"))


def refused(argv, capsys):
    assert main(["merge", *map(str, argv)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_refusals(models, tmp_path, capsys):
    a, b, out = models / "a", models / "b", tmp_path / "out"
    assert "give --base MODEL" in refused([a, b, out, "--method", "ties"], capsys)
    assert "linear does not use a base" in refused([a, b, out, "--base", a], capsys)
    assert "slerp needs 2 model(s), not 3" in refused([a, b, a, out, "--method", "slerp"], capsys)
    assert "3 weight(s) for 2 model(s)" in refused([a, b, out, "--weight", "1", "2", "3"], capsys)
    assert "of karcher are not allowed: they must be 0 or more" in refused(
        [a, b, out, "--method", "karcher", "--weight", "-1", "2"], capsys
    )
    assert "matches no tensor" in refused([a, b, out, "--weights-for", "layer_99=1,1"], capsys)
    assert "must be REGEX=w1,w2" in refused([a, b, out, "--weights-for", "x"], capsys)
    assert "has no finished checkpoint of step 7" in refused([f"{a}-run@7", b, out], capsys)
    assert "only runs with ema_decay" in refused([f"{a}-run@ema", b, out], capsys)
    assert "is in Hugging Face format, which has no steps" in refused([f"{a}@7", b, out], capsys)
    assert "give the models and then the folder" in refused([a], capsys)
    assert "already exists" in refused([a, b, a], capsys)
    assert not out.exists()
    assert not list(tmp_path.iterdir())


def test_another_shape_and_another_tokenizer_are_refused(models, tmp_path, golden_tokenizer):
    other = dataclasses.replace(CONFIG, rope_theta=5.0)
    write_public(tmp_path / "other", random_model(0), other)
    with pytest.raises(MergeError, match=r"different shapes \(rope_theta is 100000.0 and 5.0\)"):
        merge([str(models / "a"), str(tmp_path / "other")], tmp_path / "out", MergeConfig("linear"))
    for name in ("x", "y"):
        shutil.copytree(models / "a", tmp_path / name)
        shutil.copy(golden_tokenizer, tmp_path / name / "tokenizer.jsonl")
    rows = golden_tokenizer.read_text().splitlines()
    (tmp_path / "y" / "tokenizer.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(MergeError, match="different tokenizers"):
        merge([str(tmp_path / "x"), str(tmp_path / "y")], tmp_path / "out", MergeConfig("linear"))
    # Whoever has one gives it to the merged model.
    merge([str(models / "a"), str(tmp_path / "x")], tmp_path / "out", MergeConfig("linear"))
    assert (tmp_path / "out" / "tokenizer.jsonl").read_bytes() == golden_tokenizer.read_bytes()


def test_a_chat_template_goes_along(models, tmp_path):
    shutil.copytree(models / "b", tmp_path / "b")
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ messages }}")
    merge([str(models / "a"), str(tmp_path / "b")], tmp_path / "out", MergeConfig("linear"))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_truncated_file_leaves_nothing_behind(models, tmp_path):
    shutil.copytree(models / "a-run", tmp_path / "a")
    data = next((tmp_path / "a" / "checkpoints" / "0" / "params").rglob("d/*"))
    for file in data.parent.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"damaged|incomplete"):
        merge([str(tmp_path / "a"), str(models / "b")], tmp_path / "out", MergeConfig("linear"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


MEASURE = """
import sys
import numpy as np
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.merge import merge
def peak():
    # Not getrusage, which knows the peak of the process that started this one.
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
home = sys.argv[1]
merge([f"{home}/a", f"{home}/b"], f"{home}/out-{sys.argv[2]}", MergeConfig(sys.argv[2]), base=f"{home}/base")
print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with two models and a base whose largest tensor has 800,000 rows."""
    home = tmp_path_factory.mktemp("large")
    config = dataclasses.replace(CONFIG, vocab_size=800_000)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "base"):
        tensors = {t.name: rng.standard_normal(t.shape, np.float32) for t in public_tensors(config)}
        write_public(home / name, tensors, config)
    yield home
    shutil.rmtree(home)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("method", ["ties", "model_stock"])
def test_memory_stays_below_one_tensor_a_model_and_one_more(large, method):
    largest = 800_000 * CONFIG.hidden_size * 4
    script = [sys.executable, "-c", MEASURE, str(large), method]
    grown = int(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    print(f"{method}: {grown / largest:.2f} x the largest tensor of {largest / 1e6:.0f} MB")
    # Three models, one more, and 100 MB of blocks and of what imports left for later.
    assert grown < 4 * largest + 100e6


def test_a_tensor_that_is_not_finite_is_refused(models, tmp_path):
    for number, value in enumerate((np.nan, np.inf, -np.inf)):
        tensors = random_model(1)
        name = next(name for name in tensors if name.endswith("down_proj.weight"))
        tensors[name] = tensors[name].copy()
        tensors[name][-1, -1] = value
        folder = write_public(tmp_path / f"model{number}", tensors)
        with pytest.raises(MergeError, match=rf"model{number}: tensor {name} holds NaN or infinity"):
            merge([str(models / "a"), str(folder)], tmp_path / "out", MergeConfig("linear"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["([a-z_.0-9=, /]+)+X", "(" * 2000])
def test_patterns_of_weights_are_bounded(models, tmp_path, capsys, pattern):
    argv = [models / "a", models / "b", tmp_path / "out", "--weights-for", f"{pattern}=1,1"]
    assert "--weights-for" in refused(argv, capsys)
    assert not (tmp_path / "out").exists()
