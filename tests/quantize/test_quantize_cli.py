"""`plamo2 quantize`: what it writes is read by the other verbs; what it refuses leaves nothing."""

import json

import gguf
import numpy as np
import pytest

from plamo2_jax.checkpoint import save_model
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model
from plamo2_jax.model.quantized import QuantizedArray
from support.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory, config, params):
    folder = tmp_path_factory.mktemp("model") / "run"
    save_model(folder, config, params, byte_tokenizer(), files={"chat_template.jinja": b"{{ messages }}"})
    return str(folder)


def options(text):
    return [
        "--calibration",
        str(text),
        "--samples",
        "8",
        "--batch-size",
        "4",
        "--sequence-length",
        "48",
        "--group-size",
        "32",
    ]


def test_a_model_in_four_bits_generates(model, text, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["quantize", model, str(out), "--method", "gptq", "--bits", "4", *options(text)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["part", "values", "matrices"]
    assert lines[-1] == str(out)
    assert not (tmp_path / "out.progress").exists()
    loaded = load_model(out, quantized=True)
    down = loaded.params["run_0"]["layer_0"]["mlp"]["down"]
    assert isinstance(down, QuantizedArray)
    assert down.values.dtype.name == "int4"
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert main(["generate", str(out), "--prompt", "A", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    # Once more into a folder that exists.
    assert main(["quantize", model, str(out), "--method", "gptq", "--bits", "4", *options(text)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_eight_bits_need_no_data(model, tmp_path):
    assert main(["quantize", model, str(tmp_path / "out"), "--activations", "int8", "--float", "mlp/down"]) == 0
    loaded = load_model(tmp_path / "out", quantized=True).params
    gate, down = (loaded["run_0"]["layer_1"]["mlp"][name] for name in ("gate", "down"))
    assert gate.activations == "int8"
    assert isinstance(down, np.ndarray) or down.dtype == np.float32
    assert loaded["embedding"].activations is None


def test_four_bits_with_one_scale_for_each_output(model, tmp_path, capsys):
    assert main(["quantize", model, str(tmp_path / "out"), "--bits", "4", "--group-size", "none"]) == 0
    down = load_model(tmp_path / "out", quantized=True).params["run_0"]["layer_0"]["mlp"]["down"]
    assert down.values.dtype.name == "int4"
    assert down.scales.shape[-1] == 1
    assert main(["convert", "to-hf", str(tmp_path / "out"), str(tmp_path / "public")]) == 0
    groups = json.loads((tmp_path / "public" / "config.json").read_text())["quantization_config"]["config_groups"]
    strategies = {(each["weights"]["num_bits"], each["weights"]["strategy"]) for each in groups.values()}
    assert strategies == {(4, "channel"), (8, "channel")}
    again = load_model(tmp_path / "public", quantized=True).params["run_0"]["layer_0"]["mlp"]["down"]
    np.testing.assert_array_equal(again.dequantize(), down.dequantize())
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "public")]) == 0
    assert "quantized folder in Hugging Face format" in capsys.readouterr().out
    assert main(["convert", "to-gguf", str(tmp_path / "public"), str(tmp_path / "model.gguf")]) == 0
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"


def test_stored_tensors_are_listed_and_the_float_dtype_is_kept(model, tmp_path, capsys):
    """A quantized run of a bfloat16 export is exported in bfloat16 again."""
    assert main(["quantize", model, str(tmp_path / "q"), "--bits-for", "mlp/down=4", "--group-size", "32"]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "q"), str(tmp_path / "a"), "--dtype", "bfloat16"]) == 0
    assert main(["convert", "from-hf", str(tmp_path / "a"), str(tmp_path / "r")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "r"), str(tmp_path / "b")]) == 0
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    for name, tensor in (("q", "run_0_period_0/layer_0/mlp/down.values"), ("a", "mlp.down_proj.weight_packed")):
        capsys.readouterr()
        assert main(["inspect", str(tmp_path / name), "--tensors", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert "parameters" not in facts
        assert any(each["name"].endswith(tensor) for each in facts["tensors"])


def test_an_export_that_other_programs_cannot_read_is_refused_or_noted(model, tmp_path, capsys):
    options = ["--bits", "4", "--group-size", "32", "--activations", "int8"]
    assert main(["quantize", model, str(tmp_path / "q"), *options]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "q"), str(tmp_path / "code"), "--with-code"]) == 2
    assert "the Python files read float matrices only: remove --with-code" in capsys.readouterr().err
    assert main(["convert", "to-hf", str(tmp_path / "q"), str(tmp_path / "public")]) == 0
    assert "vLLM will refuse this folder" in capsys.readouterr().err
    config = json.loads((tmp_path / "public" / "config.json").read_text())
    del config["quantization_config"]["format"]
    (tmp_path / "public" / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path / "public")]) == 2
    assert "format=None is not supported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bits-for", "mlp/down=3"], "'3' is not allowed: the bits must be 8, 4 or float8"),
        (["--bits-for", "mlp/down"], "it must be REGEX=BITS"),
        (["--budget", "1MB", "--bits", "4"], "--budget cannot be combined with --bits"),
        (["--budget", "much"], "--budget 'much' is not a size"),
        (["--method", "gptq", "--calibration", "nowhere.txt"], "nowhere.txt"),
        (["--samples", "0"], "--samples 0 is not allowed"),
        (["--calibration", "nowhere.txt"], "--calibration has no effect: it needs a method other than rtn, --budget"),
        (["--group-size", "32"], "--group-size has no effect: it needs matrices with 4 bits"),
        (["--damping", "0.1"], "--damping has no effect: it needs --method gptq or awq+gptq"),
        (["--alpha", "0.7"], "--alpha has no effect: it needs --method smoothquant"),
        (["--float", "."], "leaves all matrices in floating point"),
        (["--budget", "9" * 400 + "GB"], "is not a size"),
    ],
)
def test_refusals_leave_nothing(model, tmp_path, capsys, argv, message):
    assert main(["quantize", model, str(tmp_path / "out"), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
