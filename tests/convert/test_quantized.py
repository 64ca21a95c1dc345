"""Quantized run folders: what is written is read back, on one device or several; damaged ones and other verbs are refused in a sentence."""

import json
import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.cli.main import main
from plamo2_jax.convert import quantized_read
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import read_header
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.quantized import FILE_DTYPES, FOLDER, NAMES, WEIGHTS, file_header, pack, save_quantized, unpack
from plamo2_jax.engine.weights import load_weights, order_for_cpu, unstack
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2
from plamo2_jax.model.plamo2 import declarations, period_leaf
from plamo2_jax.model.quantized import contraction_axes, quantize, quantize_float8, quantize_params
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.surgery.merge.sources import open_source
from support.models import make_params, tiny
from support.tokenizers import byte_tokenizer

CONFIG = tiny(num_hidden_layers=4)
MODEL = Plamo2(CONFIG)
SEPARATE = Plamo2(CONFIG, scan_layers=False)


@pytest.fixture(scope="module")
def params():
    return make_params(CONFIG)


@pytest.fixture(scope="module")
def uniform(params):
    """All matrices in int4 with groups of 16 inputs, asymmetric."""
    return quantize_params(params, declarations(MODEL), 4, 16, symmetric=False)


@pytest.fixture(scope="module")
def mixed(params):
    """Periods of different formats, which cannot be stacked."""
    separate = flax.traverse_util.flatten_dict(unstack(MODEL, params), sep="/")
    declared = flax.traverse_util.flatten_dict(declarations(SEPARATE), sep="/")

    def make(path, kind):
        contracted = contraction_axes(declared[path])
        if kind == "float8":
            return quantize_float8(separate[path], contracted).replace(activations="float8")
        return quantize(separate[path], contracted, kind, 8 if kind == 4 else None)

    for path, kind in {
        "run_0_period_0/layer_0/mixer/out_proj": 8,
        "run_0_period_1/layer_0/mixer/out_proj": 4,
        "run_0_period_1/layer_0/mixer/in_proj": 4,
        "run_0_period_0/layer_1/mlp/down": "float8",
        "embedding": 8,
    }.items():
        separate[path] = make(path, kind)
    return flax.traverse_util.unflatten_dict(separate, sep="/")


def save(folder, params):
    files = {"chat_template.jinja": b"{{ messages }}"}
    save_quantized(folder, CONFIG, params, byte_tokenizer(), method="rtn", files=files)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, uniform, mixed):
    home = tmp_path_factory.mktemp("quantized")
    return {"uniform": save(home / "uniform", uniform), "mixed": save(home / "mixed", mixed)}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)

    def same(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(same, found, expected)


def load_file(path):
    return {name: np.array(tensor.map(0, tensor.shape)) for name, tensor in read_header(path, FILE_DTYPES).items()}


def save_file(arrays, path):
    header = file_header({name: (NAMES[array.dtype], array.shape) for name, array in arrays.items()})
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays.values()))


def test_int4_packs_the_first_value_into_the_low_half():
    values = np.arange(-8, 8, dtype=np.int8).reshape(2, 8).astype(jax.numpy.int4)
    assert pack(values)[0].tolist() == [0x98, 0xBA, 0xDC, 0xFE]
    np.testing.assert_array_equal(unpack(pack(values)), values)


@pytest.mark.parametrize("kind", ["uniform", "mixed"])
def test_a_folder_holds_what_was_written(folders, uniform, mixed, kind):
    loaded = load_model(folders[kind], quantized=True)
    assert loaded.scan_layers is (kind == "uniform")
    assert_equal(loaded.params, uniform if kind == "uniform" else mixed)
    assert loaded.tokenizer.fingerprint == byte_tokenizer().fingerprint
    assert (folders[kind] / "chat_template.jinja").read_text() == "{{ messages }}"


def test_four_bits_are_half_a_byte_on_disk(folders):
    stored = load_file(folders["uniform"] / FOLDER / WEIGHTS)
    down = stored["run_0_period_1/layer_0/mlp/down.values"]
    assert (down.dtype, down.shape) == (np.uint8, (CONFIG.hidden_size, CONFIG.intermediate_size // 2))
    assert stored["run_0_period_1/layer_0/mlp/down.scales"].shape == (
        CONFIG.hidden_size,
        CONFIG.intermediate_size // 16,
    )


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("kind", ["uniform", "mixed"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_weights_for_inference(folders, uniform, mixed, kind, tensor, scan_layers):
    """The network fits the parameters, which are divided over a mesh like those of a float model."""
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor]) if tensor > 1 else None
    network, loaded = load_weights(folders[kind], mesh=mesh, scan_layers=scan_layers)
    assert network.scan_layers is (scan_layers and kind == "uniform")
    separate = unstack(MODEL, uniform) if kind == "uniform" else mixed
    expected = uniform if network.scan_layers else separate
    # Float matrices are stored in another order on one CPU.
    assert_equal(loaded.params, expected if mesh is not None else order_for_cpu(network, jax.device_put(expected)))
    if mesh is not None:
        leaves = flax.traverse_util.flatten_dict(loaded.params, sep="/")
        out = period_leaf(leaves, "run_0_period_0/layer_0/mixer/out_proj")
        assert out.values.sharding.shard_shape(out.values.shape)[-2] == CONFIG.mamba_num_heads // 2


def test_the_logits_are_those_of_the_parameters(folders, mixed, tmp_path):
    """`plamo2 logits`, on a folder of mixed formats."""
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    np.savez(tmp_path / "in.npz", tokens=tokens)
    argv = ["logits", folders["mixed"], "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz"]
    assert main([str(word) for word in argv]) == 0
    expected = jax.jit(lambda params: SEPARATE.apply({"params": params}, tokens)[0])(mixed)
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["logits"], expected, atol=1e-4)


def test_verbs_that_read_a_model(folders, tmp_path, capsys):
    (tmp_path / "held.txt").write_text("A few words.\n\nAnd more of them.\n")
    folder = str(folders["mixed"])
    heldout = ["--heldout", f"en={tmp_path / 'held.txt'}", "--sequence-length", "32", "--batch-size", "2"]
    assert main(["evaluate", folder, *heldout]) == 0
    assert main(["inspect", folder]) == 0
    assert "quantized run folder" in (text := capsys.readouterr().out)
    assert "1 matrices float8 with 1 scale per output and float8 activations" in text


def test_verbs_that_need_float_weights_refuse(folders, tmp_path, capsys):
    folder = str(folders["uniform"])
    (tmp_path / "merge.json").write_text("{}")
    shape = ["--set", "hidden_size=64"]
    for argv in (
        ["grow", folder, folder, str(tmp_path / "out"), *shape],
        ["extend", folder, str(tmp_path / "out"), "--window", "128"],
    ):
        assert main(argv) == 2
        assert "holds a quantized model: this command needs a float32 or bfloat16 model" in capsys.readouterr().err
    for read in (load_model, open_source):
        with pytest.raises(PlamoError, match="holds a quantized model"):
            read(folder)
    with pytest.raises(PlamoError, match="has no steps"):
        load_model(f"{folder}@3", quantized=True)
    assert not (tmp_path / "out").exists()


def test_a_second_writer_and_a_wrong_tree_are_refused(folders, uniform, tmp_path):
    with pytest.raises(PlamoError, match="already exists"):
        save(folders["uniform"], uniform)
    with pytest.raises(ConvertError, match="parameter embedding is missing"):
        save(tmp_path / "out", {name: leaf for name, leaf in uniform.items() if name != "embedding"})
    assert not (tmp_path / "out").exists()


def test_a_changed_byte_is_found(folders, tmp_path):
    copy = shutil.copytree(folders["mixed"], tmp_path / "copy")
    path = copy / FOLDER / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PlamoError, match="does not match its checksum"):
        load_model(copy, quantized=True)


def test_fingerprints_tell_quantized_models_apart(uniform, mixed):
    """Of a stacked tree and of its periods, they are the same; periods may have different formats."""
    found = checkpoint.fingerprint(CONFIG, uniform)
    assert checkpoint.fingerprint(CONFIG, unstack(MODEL, uniform)) == found
    other = jax.tree.map(lambda leaf: leaf * 1.5 if leaf.dtype == np.float32 and leaf.ndim > 1 else leaf, uniform)
    assert len({found, checkpoint.fingerprint(CONFIG, mixed), checkpoint.fingerprint(CONFIG, other)}) == 3


OUT, OUT4 = (f"run_0_period_{i}/layer_0/mixer/out_proj" for i in (0, 1))


def config_change(change):
    def apply(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        change(content["quantization"])
        path.write_text(json.dumps(content))

    return apply


def tensor_change(name, change, zero_points=None):
    def apply(folder):
        path = folder / FOLDER / WEIGHTS
        stored = load_file(path)
        stored[name] = np.ascontiguousarray(change(stored[name]))
        if zero_points:
            stored[zero_points] = np.full(stored[name].shape, 9, np.int8)
        save_file(stored, path)

    return apply


def first(value):
    def change(array):
        array.reshape(-1)[0] = value
        return array

    return change


def nan_byte(array):
    array.view(np.uint8).reshape(-1)[0] = 0x7F
    return array


HOSTILE = {
    "version": (config_change(lambda q: q.update(version=2)), "version 2 is not known: it must be 1"),
    "no tensors": (config_change(lambda q: q.update(tensors={})), '"tensors" an object with at least one matrix'),
    "unknown values": (
        config_change(lambda q: q["tensors"][OUT].update(values="int3")),
        "values 'int3' are not known: they must be int8, int4 or float8",
    ),
    "values of another type": (
        config_change(lambda q: q["tensors"][OUT].update(values=["int8"])),
        "are not known: they must be int8, int4 or float8",
    ),
    "unknown activations": (
        config_change(lambda q: q["tensors"][OUT].update(activations="int4")),
        "activations must be int8, float8 or null",
    ),
    "unknown field": (config_change(lambda q: q["tensors"][OUT].update(rotation="hadamard")), "and no others"),
    "no groups": (config_change(lambda q: q["tensors"][OUT].update(groups=0)), "groups must be a positive integer"),
    "groups that do not divide": (
        config_change(lambda q: q["tensors"][OUT].update(groups=7)),
        "7 groups do not divide the 64 inputs",
    ),
    "not a matrix": (
        config_change(lambda q: q["tensors"].update({"final_norm/scale": q["tensors"][OUT]})),
        "the model has no such matrix",
    ),
    "a format that the file does not have": (
        config_change(lambda q: q["tensors"][OUT].update(zero_points=True)),
        "only one of the two has run_0_period_0/layer_0/mixer/out_proj.zero_points",
    ),
    "shape of the scales": (tensor_change(f"{OUT}.scales", lambda a: a[:-1]), "has shape [31, 1]: it must be [32, 1]"),
    "dtype of the values": (tensor_change(f"{OUT}.values", lambda a: a.astype(np.float32)), "it must be I8"),
    "NaN": (tensor_change(f"{OUT}.scales", first(np.nan)), "holds a scale that is not positive and finite"),
    "infinity": (tensor_change(f"{OUT}.scales", first(np.inf)), "holds a scale that is not positive and finite"),
    "a negative scale": (tensor_change(f"{OUT}.scales", first(-1)), "holds a scale that is not positive and finite"),
    "a scale of zero": (tensor_change(f"{OUT}.scales", first(0)), "holds a scale that is not positive and finite"),
    "values out of range": (
        tensor_change("run_0_period_0/layer_1/mlp/down.values", nan_byte),
        "holds NaN: float8 values must be from -448 to 448",
    ),
    "zero points out of range": (
        lambda folder: (
            config_change(lambda q: q["tensors"][OUT4].update(zero_points=True))(folder),
            tensor_change(f"{OUT4}.scales", lambda a: a, zero_points=f"{OUT4}.zero_points")(folder),
        ),
        "holds a zero point out of range: zero points of int4 must be from -8 to 7",
    ),
    "no weights": (lambda folder: shutil.rmtree(folder / FOLDER), "has no folder quantized"),
    "a cut file": (
        lambda folder: (folder / FOLDER / WEIGHTS).write_bytes((folder / FOLDER / WEIGHTS).read_bytes()[:-9]),
        "is damaged or not a safetensors file",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damage_is_one_sentence(folders, tmp_path, case):
    """Without the checksums, which anyone who changes a file on purpose can remove."""
    copy = shutil.copytree(folders["mixed"], tmp_path / "copy")
    for manifest in (copy / "manifest.json", copy / FOLDER / "manifest.json"):
        manifest.unlink()
    change, message = HOSTILE[case]
    change(copy)
    with pytest.raises(ConvertError) as caught:
        load_model(copy, quantized=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(folders, tmp_path):
    copy = shutil.copytree(folders["mixed"], tmp_path / "copy")
    shutil.move(copy / FOLDER, tmp_path / "elsewhere")
    (copy / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConvertError, match="symbolic link"):
        load_model(copy, quantized=True)


def test_processes_read_only_their_slices(folders, monkeypatch):
    """A slice of packed values that begins within a byte."""
    read = []
    plain = quantized_read._slice
    monkeypatch.setattr(quantized_read, "_slice", lambda *args: read.append(args[1:3]) or plain(*args))
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=2), jax.devices()[:2])
    load_weights(folders["uniform"], mesh=mesh)
    bounds = {bounds for name, bounds in read if name == "run_0_period_0/layer_0/mlp/down.values"}
    assert bounds == {((0, 32), (0, 16)), ((0, 32), (16, 32))}
