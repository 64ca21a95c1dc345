"""Our compressed-tensors files with the compressed-tensors library: packing, dequantized weights, matching of layers."""

import json

import flax.traverse_util
import jax
import numpy as np
import pytest

from plamo2_jax.config import preset
from plamo2_jax.convert.compressed_config import read_groups
from plamo2_jax.convert.compressed_tensors import pack, unpack
from plamo2_jax.convert.hf import write_public
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.model import Plamo2, axes, declarations, init_params
from plamo2_jax.model.quantized import QuantizedArray, contraction_axes, quantize, quantize_float8

pytestmark = pytest.mark.peer

torch = pytest.importorskip("torch", reason="torch is not installed (make peers installs it)")
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed (make peers installs it)")

from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig  # noqa: E402
from compressed_tensors.utils import match_named_modules  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

CONFIG = preset("tiny", hidden_size=64, hidden_size_per_head=16, vocab_size=96)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [64, 37])
def test_packing_is_theirs(bits, count):
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (9, count)).astype(np.int8)
    theirs = pack_to_int32(torch.tensor(values), bits)
    ours = pack(values, bits)
    np.testing.assert_array_equal(ours, theirs.numpy())
    np.testing.assert_array_equal(unpack(ours, bits, count), values)
    np.testing.assert_array_equal(unpack_from_int32(torch.tensor(ours), bits, values.shape).numpy(), values)


CASES = {
    "W4A16": lambda x, c: quantize(x, c, 4, 32),
    "W4A16 with zero points": lambda x, c: quantize(x, c, 4, 32, symmetric=False),
    "W8A16": lambda x, c: quantize(x, c, 8),
    "W8A8": lambda x, c: quantize(x, c, 8).replace(activations="int8"),
    "FP8": lambda x, c: quantize_float8(x, c).replace(activations="float8"),
    "FP8 weights": quantize_float8,
}


@pytest.mark.parametrize("case", CASES)
def test_their_dequantized_weights_are_ours(case, tmp_path):
    params = jax.jit(lambda key: init_params(Plamo2(CONFIG), key))(jax.random.key(0))
    declared = flax.traverse_util.flatten_dict(declarations(Plamo2(CONFIG)), sep="/")
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    kept = ("embedding", "b_proj", "c_proj", "dt_")
    for path, leaf in leaves.items():
        if axes.is_matrix(declared[path].names) and not any(name in path for name in kept):
            leaves[path] = CASES[case](leaf, contraction_axes(declared[path]))
    quantized = flax.traverse_util.unflatten_dict(leaves, sep="/")
    write_public(tmp_path / "quantized", CONFIG, quantized, None)
    plain = jax.tree.map(
        lambda x: x.dequantize() if isinstance(x, QuantizedArray) else x,
        quantized,
        is_leaf=lambda x: isinstance(x, QuantizedArray),
    )
    write_public(tmp_path / "plain", CONFIG, plain, None)
    values = json.loads((tmp_path / "quantized" / "config.json").read_text())
    config = QuantizationConfig.model_validate(values["quantization_config"])
    tensors = load_file(tmp_path / "quantized" / "model.safetensors")
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    groups = read_groups(values, "config.json")
    names = [t.name.removesuffix(".weight") for t in public_tensors(CONFIG) if t.name.endswith("_proj.weight")]
    matched = matched_names(names, config)
    assert matched == {name for name in names if groups.scheme_of(name) is not None}
    assert matched == {name for name in names if "bcdt" not in name and "dt_proj" not in name}
    (scheme,) = config.config_groups.values()
    for name in matched:
        state = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        # The library needs the shape, which we leave out for in_proj.
        state.setdefault("weight_shape", torch.tensor(expected[f"{name}.weight"].shape))
        if scheme.format != "pack-quantized":
            del state["weight_shape"]
        theirs = decompressed(scheme, state)
        np.testing.assert_allclose(theirs, expected[f"{name}.weight"].numpy(), rtol=1e-6, err_msg=name)


def matched_names(names, config):
    """The linear layers that the library would quantize."""
    model = torch.nn.Module()
    for name in names:
        parent = model
        *path, last = name.split(".")
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, torch.nn.Linear(1, 1))
    targets = [target for group in config.config_groups.values() for target in group.targets]
    return {name for name, _ in match_named_modules(model, targets, config.ignore)}


def decompressed(scheme, state):
    """The weight that the library computes from the tensors of a layer."""
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    return compressor.decompress(state, scheme)["weight"].float().numpy()
