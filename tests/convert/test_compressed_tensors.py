"""Quantized models as compressed-tensors: what is written is what other programs read, and is read back to the same values."""

import dataclasses
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.convert.compressed_tensors import Scheme, pack, unpack
from plamo2_jax.convert.hf import from_public, to_public, write_public
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.quantized import save_quantized
from plamo2_jax.model import Plamo2, axes, declarations, init_params
from plamo2_jax.model.quantized import QuantizedArray, contraction_axes, quantize, quantize_float8

CONFIG = preset(
    "tiny", hidden_size=64, intermediate_size=96, hidden_size_per_head=16, num_attention_heads=4, vocab_size=96
)
MIXER = "model.layers.layers.0.mixer"


@pytest.fixture(scope="module")
def floats():
    return jax.jit(lambda key: init_params(Plamo2(CONFIG), key))(jax.random.key(0))


def quantized_tree(floats, bits=8, group_size=None, activations=None, symmetric=True, kept=("b_proj", "c_proj", "dt")):
    """The parameters with all matrices quantized, except those whose path holds one of `kept`."""
    declared = flax.traverse_util.flatten_dict(declarations(Plamo2(CONFIG)), sep="/")
    leaves = flax.traverse_util.flatten_dict(floats, sep="/")

    def one(path, leaf):
        if not axes.is_matrix(declared[path].names) or any(name in path for name in kept):
            return leaf
        contracted = contraction_axes(declared[path])
        if bits == "float8":
            return quantize_float8(leaf, contracted).replace(activations=activations)
        return quantize(leaf, contracted, bits, group_size, symmetric).replace(activations=activations)

    return flax.traverse_util.unflatten_dict({path: one(path, leaf) for path, leaf in leaves.items()}, sep="/")


CASES = {
    "W4A16": ({"bits": 4, "group_size": 32}, "pack-quantized"),
    "W8A16": ({"bits": 8, "group_size": 32}, "pack-quantized"),
    "W8A8": ({"bits": 8, "activations": "int8"}, "int-quantized"),
    "FP8": ({"bits": "float8", "activations": "float8"}, "float-quantized"),
    "FP8 weights": ({"bits": "float8"}, "naive-quantized"),
    "zero points": ({"bits": 4, "group_size": 32, "symmetric": False}, "pack-quantized"),
    "zero points of a channel": ({"bits": 8, "activations": "int8", "symmetric": False}, "int-quantized"),
}


@pytest.mark.parametrize("case", CASES)
def test_written_and_read_back(case, floats, tmp_path):
    options, form = CASES[case]
    params = quantized_tree(floats, **options)
    save_quantized(tmp_path / "run", CONFIG, params, method="rtn")
    to_public(tmp_path / "run", tmp_path / "public")
    config = json.loads((tmp_path / "public" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", form)
    assert config["ignore"] == ["lm_head", "re:.*\\.bcdt_proj$", "re:.*\\.dt_proj$"]
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    from_public(tmp_path / "public", tmp_path / "again")
    for again in (tmp_path / "public", tmp_path / "again"):
        loaded = load_model(again, quantized=True)
        assert_same(loaded.params, params)
    # Twice is the same file.
    to_public(tmp_path / "again", tmp_path / "twice")
    first, second = (tmp_path / name / "model.safetensors" for name in ("public", "twice"))
    assert first.read_bytes() == second.read_bytes()


def assert_same(found, expected):
    """Quantized parameters of layers equal bit for bit. The embedding was written in float."""
    found, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        if path == "embedding":
            np.testing.assert_array_equal(found[path], leaf.dequantize())
            continue
        assert jax.tree.structure(found[path]) == jax.tree.structure(leaf), path
        for left, right in zip(jax.tree.leaves(found[path]), jax.tree.leaves(leaf), strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(np.asarray(left).astype(np.float32), np.asarray(right).astype(np.float32))


def test_the_tensors_of_a_packed_layer(floats, tmp_path):
    params = quantized_tree(floats, bits=4, group_size=32)
    write_public(tmp_path / "public", CONFIG, params, None)
    tensors = load_file(tmp_path / "public" / "model.safetensors")
    out_proj = {
        name.removeprefix(f"{MIXER}.out_proj."): each for name, each in tensors.items() if "0.mixer.out" in name
    }
    inner = CONFIG.mamba_num_heads * CONFIG.hidden_size_per_head
    assert {name: (each.dtype, each.shape) for name, each in out_proj.items()} == {
        "weight_packed": (np.int32, (64, inner // 8)),
        "weight_scale": (np.float32, (64, inner // 32)),
        "weight_shape": (np.int64, (2,)),
    }
    assert out_proj["weight_shape"].tolist() == [64, inner]
    # vLLM's loader permutes every tensor of in_proj, and cannot permute this one.
    assert f"{MIXER}.in_proj.weight_shape" not in tensors
    assert f"{MIXER}.bcdt_proj.weight" in tensors
    # The public rows of the dequantized weight: per head z and then x.
    plain = tmp_path / "plain"
    whole = jax.tree.map(lambda x: x.dequantize() if isinstance(x, QuantizedArray) else x, params, is_leaf=is_quantized)
    write_public(plain, CONFIG, whole, None)
    expected = load_file(plain / "model.safetensors")[f"{MIXER}.in_proj.weight"]
    values = unpack(tensors[f"{MIXER}.in_proj.weight_packed"], 4, 64).astype(np.float32)
    scales = np.repeat(tensors[f"{MIXER}.in_proj.weight_scale"], 32, axis=1)
    np.testing.assert_array_equal(values * scales, expected)


def is_quantized(leaf):
    return isinstance(leaf, QuantizedArray)


def test_logits_of_an_export(floats, tmp_path):
    params = quantized_tree(floats, bits=8)
    write_public(tmp_path / "public", CONFIG, params, None)
    loaded = load_model(tmp_path / "public", quantized=True)
    tokens = jnp.arange(1, 33)[None]
    apply = jax.jit(Plamo2(CONFIG).apply)
    expected, _ = apply({"params": params}, tokens)
    found, _ = apply({"params": loaded.params}, tokens)
    # The embedding was written in float, so the order of roundings differs.
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_mixed_formats_are_widened_or_written_in_float(floats, tmp_path):
    """Per layer 8 and 4 bits; q, k and v of one matrix with 4 and 8 bits; gate quantized and up not; groups of other sizes."""
    four, eight = quantized_tree(floats, bits=4, group_size=32), quantized_tree(floats, bits=8, group_size=16)
    mixed = jax.tree.map(lambda leaf: leaf, four, is_leaf=is_quantized)
    mixed["run_0"]["layer_0"]["mixer"]["out_proj"] = eight["run_0"]["layer_0"]["mixer"]["out_proj"]
    mixed["run_0"]["layer_1"]["mixer"]["v_proj"] = eight["run_0"]["layer_1"]["mixer"]["v_proj"]
    mixed["run_0"]["layer_0"]["mlp"]["up"] = floats["run_0"]["layer_0"]["mlp"]["up"]
    write_public(tmp_path / "public", CONFIG, mixed, None)
    config = json.loads((tmp_path / "public" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"
    targets = {group["weights"]["num_bits"]: group["targets"] for group in config["config_groups"].values()}
    gates = [f"model.layers.layers.{i}.mlp.gate_up_proj" for i in range(4)]
    assert gates[0] in config["ignore"]
    assert gates[1] in targets[4]
    loaded = load_model(tmp_path / "public", quantized=True)
    found, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (loaded.params, mixed))
    for path, leaf in expected.items():
        ours = found[path]
        left, right = (x.dequantize() if is_quantized(x) else x for x in (ours, leaf))
        np.testing.assert_array_equal(left, right, err_msg=path)
    assert found["run_0/layer_1/mixer/q_proj"].values.dtype == jnp.int8
    assert found["run_0/layer_0/mlp/down"].values.dtype == jnp.int4
    assert not is_quantized(found["run_0/layer_0/mlp/gate"])


def test_layers_of_different_formats_are_not_stacked(floats, tmp_path):
    four, eight = quantized_tree(floats, bits=4, group_size=32), quantized_tree(floats, bits=8)
    one = jax.tree.map(lambda x: x[0], eight["run_0"], is_leaf=is_quantized)
    separate = {
        "run_0_period_0": one,
        "run_0_period_1": jax.tree.map(lambda x: x[1], four["run_0"], is_leaf=is_quantized),
    }
    tree = {name: leaf for name, leaf in four.items() if name != "run_0"} | separate
    write_public(tmp_path / "public", CONFIG, tree, None)
    loaded = load_model(tmp_path / "public", quantized=True)
    assert not loaded.scan_layers
    assert_same(loaded.params, tree)


@pytest.mark.parametrize(("bits", "count"), [(4, 16), (4, 13), (8, 12), (8, 9)])
def test_packing(bits, count):
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, count)).astype(np.int8)
    packed = pack(values, bits)
    assert packed.dtype == np.int32
    each = 32 // bits
    for row, column in np.ndindex(values.shape):
        word = int(packed[row, column // each]) & 0xFFFFFFFF
        stored = (word >> bits * (column % each)) & (2**bits - 1)
        assert stored - 2 ** (bits - 1) == values[row, column]
    np.testing.assert_array_equal(unpack(packed, bits, count), values)


REFUSED = {
    "another method": ({"quant_method": "gptq", "bits": 4}, None, "quant_method 'gptq' is not supported"),
    "no object": ("awq", None, "quant_method 'awq' is not supported"),
    "another format": ({"format": "nvfp4-pack-quantized"}, None, "format='nvfp4-pack-quantized' is not supported"),
    "a sparse model": ({"sparsity_config": {"format": "sparse"}}, None, "sparsity_config=.* is not supported"),
    "a hostile pattern": ({"ignore": ["re:(a+)+$"]}, None, r"pattern 're:\(a\+\)\+\$' is not supported"),
    "nothing quantized": ({"ignore": ["re:.*_proj"]}, None, "quantization_config quantizes no matrix of the model"),
    "three bits": (None, {"num_bits": 3}, "type 'int' of 3 bits is not supported"),
    "a scale per tensor": (None, {"strategy": "tensor"}, "strategy 'tensor' .* is not supported"),
    "a group that does not divide": (None, {"group_size": 24}, "group_size 24 does not divide the 64 inputs"),
    "another group": (None, {"group_size": 16}, r"weight_scale has shape \[.*\]: it must be"),
    "reordered activations": (None, {"actorder": "group"}, "actorder='group' is not supported"),
}


@pytest.fixture(scope="module")
def written(floats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "public"
    write_public(folder, CONFIG, quantized_tree(floats, bits=4, group_size=32), None)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def rewritten(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_other_formats_are_refused_by_name(case, written, tmp_path, capsys):
    top, weights, message = REFUSED[case]
    config = json.loads(json.dumps(written[0]))
    if isinstance(top, str):
        config["quantization_config"] = top
    else:
        config["quantization_config"] |= top or {}
        config["quantization_config"]["config_groups"]["group_0"]["weights"] |= weights or {}
    folder = rewritten(tmp_path / "public", config, written[1])
    with pytest.raises(ValueError, match=message) as refusal:
        from_public(folder, tmp_path / "run")
    assert len(str(refusal.value)) < 500
    assert not (tmp_path / "run").exists()


DAMAGED = {
    "a scale of the wrong shape": ("out_proj.weight_scale", lambda x: x[:, :1].copy(), "weight_scale has shape"),
    "NaN as a scale": ("out_proj.weight_scale", lambda x: np.full_like(x, np.nan), "not positive and finite"),
    "packed floats": ("out_proj.weight_packed", lambda x: x.astype(np.float32), "has dtype F32: it must be I32"),
    "another shape": ("out_proj.weight_shape", lambda x: x + 1, "weight_shape is .*: it must be"),
    "no scale": ("out_proj.weight_scale", lambda x: None, "does not have 1 tensor"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tensors_are_refused(case, written, tmp_path):
    name, change, message = DAMAGED[case]
    tensors = dict(written[1])
    changed = change(tensors.pop(f"{MIXER}.{name}"))
    if changed is not None:
        tensors[f"{MIXER}.{name}"] = changed
    folder = rewritten(tmp_path / "public", written[0], tensors)
    with pytest.raises(ValueError, match=message):
        from_public(folder, tmp_path / "run")


def test_commands_for_float_models_refuse_it(written, tmp_path, capsys):
    folder = rewritten(tmp_path / "public", *written)
    with pytest.raises(ValueError, match="holds a quantized model: this command needs a float32"):
        load_model(folder)
    assert main(["merge", "--method", "linear", str(folder), str(folder), str(tmp_path / "out")]) == 2
    assert "holds a quantized model" in capsys.readouterr().err


def test_every_tensor_is_aligned(written, tmp_path):
    """PyTorch's loader views the bytes in place, which needs offsets that are multiples of the element size."""
    folder = rewritten(tmp_path / "public", *written)
    write_public(tmp_path / "ours", CONFIG, load_model(folder, quantized=True).params, None, dtype="bfloat16")
    data = (tmp_path / "ours" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    sizes = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2}
    found = json.loads(data[8 : 8 + length])
    kinds = {each["dtype"] for name, each in found.items() if name != "__metadata__"}
    assert kinds == set(sizes)
    assert all(
        each["data_offsets"][0] % sizes[each["dtype"]] == 0 for name, each in found.items() if name != "__metadata__"
    )


def test_schemes_have_the_names_of_their_formats():
    scheme = Scheme("int", 8, None)
    assert scheme.format == "pack-quantized"
    assert dataclasses.replace(scheme, activations="int8").format == "int-quantized"
