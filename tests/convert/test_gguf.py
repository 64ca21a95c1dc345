"""GGUF files, read back with the reader, the names and the dequantization of the package gguf."""

import dataclasses
import functools
import importlib.util
import re
import tracemalloc

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from plamo2_jax.cli.main import main
from plamo2_jax.convert import chunked_io
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.gguf import to_gguf, write_gguf
from plamo2_jax.convert.gguf_blocks import integer_rows
from plamo2_jax.convert.hf import from_public
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.quantized import save_quantized
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, axes, declarations, init_params
from plamo2_jax.model.quantized import QuantizedArray, contraction_axes, quantize, quantize_float8, quantize_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.checkpoints import CONFIG, DTYPES, write_public, write_sharded
from support.tokenizers import byte_tokenizer

# Layers of three kinds with one RoPE base, untied, more rows than the tokenizer; rows of down_proj are no multiple of 32.
CONFIG = dataclasses.replace(CONFIG, rope_local_theta=None, max_position_embeddings=4096)
# All rows have 64 values.
EVEN = dataclasses.replace(
    CONFIG, hidden_size=64, intermediate_size=64, num_attention_heads=8, num_hidden_layers=2, full_attention_idx=()
)
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
TEMPLATE = "{{ messages }}"


def normal_tensors(config=CONFIG, dtype="float32"):
    rng = np.random.default_rng(0)
    return {t.name: rng.standard_normal(t.shape).astype(DTYPES[dtype]) for t in public_tensors(config)}


@pytest.fixture
def model(tmp_path, golden_tokenizer):
    """A folder in Hugging Face format with tokenizer and chat template."""
    folder = write_sharded(tmp_path / "model", normal_tensors(), CONFIG)
    (folder / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def even_params():
    return jax.jit(functools.partial(init_params, Plamo2(EVEN)))(jax.random.key(0))


def read(path):
    """Fields by key, and tensors by name as (type, shape, values)."""
    reader = gguf.GGUFReader(path)
    tensors = {}
    for t in reader.tensors:
        shape = tuple(t.shape.tolist()[::-1])
        tensors[t.name] = t.tensor_type.name, shape, gguf.quants.dequantize(t.data, t.tensor_type).reshape(shape)
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "pre_mixer_norm.weight": "attn_norm.weight",
    "post_mixer_norm.weight": "post_attention_norm",
    "pre_mlp_norm.weight": "ffn_norm.weight",
    "post_mlp_norm.weight": "post_ffw_norm",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.dt_norm_weight": "ssm_dt_norm",
    "mixer.B_norm_weight": "ssm_b_norm",
    "mixer.C_norm_weight": "ssm_c_norm",
    "mixer.q_weight": "attn_q_norm.weight",
    "mixer.k_weight": "attn_k_norm.weight",
}


def gguf_name(name):
    """The name of a public tensor: of matrices by the package's table, of others as llama.cpp's loader asks for them."""
    index, short = name.removeprefix("model.layers.layers.").split(".", 1)
    if short in NAMES or name in NAMES:
        return NAMES.get(name) or f"blk.{index}.{NAMES[short]}"
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PLAMO2, CONFIG.num_hidden_layers)
    return table.get_name(name, (".weight",))


def expected_values(name, values):
    """The values that llama.cpp expects of a public tensor, as its converter makes them."""
    offsets = {"pre_mixer_norm": 1, "post_mixer_norm": 1 / 5, "pre_mlp_norm": 1, "post_mlp_norm": 1 / 5**1.5, "norm": 1}
    if name.endswith("A_log"):
        return -np.exp(values.astype(np.float64)).astype(np.float32)
    if "conv1d" in name:
        return values[:, 0]
    return values + np.float32(offsets.get(name.split(".")[-2], 0))


def test_names_shapes_and_values(tmp_path, model):
    written = to_gguf(model, tmp_path / "model.gguf", kind="f32")
    assert written.bytes == (tmp_path / "model.gguf").stat().st_size
    _, tensors = read(tmp_path / "model.gguf")
    expected = {gguf_name(name): expected_values(name, values) for name, values in normal_tensors().items()}
    assert tensors.keys() == expected.keys()
    for name, (type, shape, values) in tensors.items():
        assert (type, shape) == ("F32", expected[name].shape), name
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_keys(tmp_path, model):
    written = to_gguf(model, tmp_path / "model.gguf", kind="q8_0")
    keys, _ = read(tmp_path / "model.gguf")
    layers = CONFIG.num_hidden_layers
    network = {
        "vocab_size": CONFIG.vocab_size,
        "context_length": CONFIG.attention_window_size + 1,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "block_count": layers,
        "attention.head_count": [CONFIG.num_attention_heads] * layers,
        "attention.head_count_kv": [0, CONFIG.num_key_value_heads] * 3 + [0],
        "attention.key_length": 8,
        "attention.value_length": 8,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.freq_base": 1e5,
        "ssm.state_size": 4,
        "ssm.conv_kernel": 4,
        "ssm.time_step_rank": 8,
        "ssm.inner_size": 64,
        "ssm.group_count": 0,
    }
    assert {key.removeprefix("plamo2."): value for key, value in keys.items() if key.startswith("plamo2.")} == network
    general = {key: value for key, value in keys.items() if key.startswith("general.")}
    assert general == {
        "general.architecture": "plamo2",
        "general.name": "model",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    assert "beyond 7 tokens" in written.notes[-1]


def test_tokenizer_keys(tmp_path, model, golden_tokenizer):
    to_gguf(model, tmp_path / "model.gguf", kind="f32")
    keys, _ = read(tmp_path / "model.gguf")
    found = {key.removeprefix("tokenizer."): value for key, value in keys.items() if key.startswith("tokenizer.")}
    rows = Tokenizer.load(golden_tokenizer).vocabulary
    count = len(rows.tokens)
    tokens, scores, types = (found.pop(f"ggml.{key}") for key in ("tokens", "scores", "token_type"))
    assert tokens == [*rows.tokens, *(f"[PAD{i}]" for i in range(CONFIG.vocab_size - count))]
    assert len(tokens) == CONFIG.vocab_size > count
    names = {type.value: type.name for type in gguf.TokenType}
    assert [names[type] for type in types] == [*rows.types, *["UNUSED"] * (CONFIG.vocab_size - count)]
    # What the loader computes: score * 1e4 in double, rounded; -20,000,000 is its mark of a row that is no token.
    costs = -np.rint(np.array(scores, np.float32).astype(np.float64) * 1e4)
    matched = np.array([kind in ("NORMAL", "BYTE") for kind in rows.types])
    np.testing.assert_array_equal(costs[:count][matched], rows.costs[matched])
    assert set(costs[count:]) | set(costs[:count][~matched]) == {20_000_000}
    assert found == {
        "ggml.model": "plamo2",
        "ggml.pre": "default",
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.padding_token_id": 3,
        "ggml.unknown_token_id": 0,
        "ggml.eot_token_id": 4,
        "ggml.eom_token_id": 1,
        "ggml.add_bos_token": True,
        "ggml.add_eos_token": False,
        "ggml.add_space_prefix": False,
        "chat_template": TEMPLATE,
    }


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_tensors(tmp_path, model, kind):
    """Vectors, per-head scales and filters are F32; the inputs of the scan have at least 16 bits; odd rows are F16."""
    written = to_gguf(model, tmp_path / "model.gguf", kind=kind)
    _, tensors = read(tmp_path / "model.gguf")
    _, exact = read(to_gguf(model, tmp_path / "exact.gguf", kind="f32") and tmp_path / "exact.gguf")
    special = {"q8_0": {}, "q4_0": {"ssm_out": "F16", "token_embd": "Q8_0", "output": "Q8_0"}}
    special = {key: value | {"ssm_x": "F16", "ssm_dt": "F16", "ffn_down": "F16"} for key, value in special.items()}
    for name, (type, shape, values) in tensors.items():
        short = name.removesuffix(".weight").split(".")[-1]
        float32 = len(shape) == 1 or short in ("ssm_conv1d", "attn_q_norm", "attn_k_norm")
        assert type == ("F32" if float32 else special.get(kind, {}).get(short, kind.upper())), name
        # The blocks are those of the package, and floats are rounded to nearest.
        blocks = gguf.quants.quantize(exact[name][2], gguf.GGMLQuantizationType[type])
        np.testing.assert_array_equal(
            values, gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type]).reshape(shape), err_msg=name
        )
    assert any("7 matrices are written in F16" in note for note in written.notes) == (kind in special)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_folder_gives_the_same_file(tmp_path, golden_tokenizer, dtype):
    (tmp_path / "a").mkdir()
    public = write_public(tmp_path / "a" / "model", normal_tensors(dtype=dtype), CONFIG)
    (public / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    from_public(public, tmp_path / "b" / "model")
    to_gguf(public, tmp_path / "a.gguf", kind="q4_0")
    to_gguf(tmp_path / "b" / "model", tmp_path / "b.gguf", kind="q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_blocks_of_any_size_give_the_same_file(tmp_path, model, monkeypatch):
    to_gguf(model, tmp_path / "whole.gguf", kind="q8_0")
    monkeypatch.setattr(chunked_io, "BLOCK_BYTES", 1000)
    to_gguf(model, tmp_path / "blocks.gguf", kind="q8_0")
    assert (tmp_path / "blocks.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_memory_is_bounded_by_blocks(tmp_path, golden_tokenizer, monkeypatch):
    """A matrix of 16 MB is read, quantized and written in blocks of 1 MiB."""
    wide = dataclasses.replace(EVEN, intermediate_size=2**15)
    folder = write_public(tmp_path / "model", normal_tensors(wide), wide)
    (folder / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    monkeypatch.setattr(chunked_io, "BLOCK_BYTES", 1 << 20)
    peaks = []

    def record(done, total):
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()

    tracemalloc.start()
    to_gguf(folder, tmp_path / "model.gguf", kind="q8_0", on_write=record)
    tracemalloc.stop()
    assert len(peaks) > 40
    # The first one includes the reading of the tokenizer.
    # The package quantizes 16 rows together; those of ffn_down have 128 KiB.
    assert max(peaks[1:]) < 12 << 20


@pytest.mark.parametrize(("type", "low", "high"), [("Q8_0", -127, 127), ("Q4_0", -8, 7)])
def test_integers_are_packed_as_the_package_packs_them(type, low, high):
    """Blocks of integers times a scale of few bits, whose largest magnitude is at the end of the range, quantize to themselves."""
    rng = np.random.default_rng(0)
    integers = rng.integers(low, high + 1, (6, 96)).astype(np.int8)
    integers[:, ::32] = low
    scales = (rng.integers(1, 1024, (6, 3)) / 2048).astype(np.float32)
    weights = integers * np.repeat(scales, 32, axis=1)
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[type])
    np.testing.assert_array_equal(integer_rows(integers, scales, type, "w"), expected.reshape(-1))


def quantized(params, *args, select=lambda declared: axes.is_matrix(declared.names)):
    return quantize_params(params, declarations(Plamo2(EVEN)), *args, select=select)


def dequantized_tensors(params, tmp_path):
    """The tensors of the dequantized model in a float32 file, by name."""
    floats = jax.tree.map(
        lambda leaf: leaf.dequantize() if isinstance(leaf, QuantizedArray) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, QuantizedArray),
    )
    write_gguf(tmp_path / "float.gguf", EVEN, floats, byte_tokenizer(), kind="f32")
    return read(tmp_path / "float.gguf")[1]


@pytest.mark.parametrize(
    ("bits", "group", "type"), [(8, 32, "Q8_0"), (8, None, "Q8_0"), (4, 32, "Q4_0"), (4, 64, "Q4_0")]
)
def test_a_quantized_model_keeps_its_integers(tmp_path, even_params, bits, group, type):
    params = quantized(even_params, bits, group)
    written = write_gguf(tmp_path / "model.gguf", EVEN, params, byte_tokenizer())
    _, tensors = read(tmp_path / "model.gguf")
    for name, (_, shape, values) in dequantized_tensors(params, tmp_path).items():
        matrix = len(shape) == 2 and tensors[name][0] != "F32"
        assert tensors[name][0] == (type if matrix else "F32"), name
        # Scales are rounded to float16: 11 bits.
        np.testing.assert_allclose(tensors[name][2], values, rtol=2**-11 if matrix else 0, err_msg=name)
    assert not any("quantized" in note for note in written.notes)
    if bits == 4:
        # Q8_0 holds the same integers.
        write_gguf(tmp_path / "eight.gguf", EVEN, params, byte_tokenizer(), kind="q8_0")
        _, eight = read(tmp_path / "eight.gguf")
        assert {found[0] for found in eight.values()} == {"F32", "Q8_0"}
        for name, (_, _, values) in eight.items():
            np.testing.assert_array_equal(values, tensors[name][2], err_msg=name)


def test_a_mixed_model_keeps_the_bits_of_each_matrix(tmp_path, even_params):
    """4 bits in the MLP, 8 bits in the rest, and the scan's inputs in float."""
    mlp = quantized(even_params, 4, 32, select=lambda declared: axes.MLP in declared.names)
    scan = {axes.STATE, axes.DT_RANK}
    rest = quantized(
        even_params,
        8,
        32,
        select=lambda d: axes.is_matrix(d.names) and axes.MLP not in d.names and not scan & {*d.names},
    )
    whole = {
        path: leaf if isinstance(leaf, QuantizedArray) else flatten_dict(rest)[path]
        for path, leaf in flatten_dict(mlp).items()
    }
    written = write_gguf(tmp_path / "model.gguf", EVEN, unflatten_dict(whole), byte_tokenizer())
    for name, (type, shape, _) in read(tmp_path / "model.gguf")[1].items():
        wanted = {"ffn_up": "Q4_0", "ffn_down": "Q4_0", "ssm_x": "F16", "ssm_dt": "F16"}.get(
            name.split(".")[-2], "Q8_0"
        )
        assert type == (wanted if len(shape) == 2 and not re.search("conv1d|_norm", name) else "F32"), name
    assert not any("quantized" in note for note in written.notes)


def test_values_of_eight_bits_without_blocks_keep_their_bits_beside_four_bits(tmp_path, even_params):
    """float8 has no blocks in GGUF."""
    leaves, declared = flatten_dict(even_params, sep="/"), flatten_dict(declarations(Plamo2(EVEN)), sep="/")
    for path in leaves:
        if path.endswith(("mlp/gate", "mlp/up")):
            leaves[path] = quantize_float8(leaves[path], contraction_axes(declared[path]))
        elif path.endswith("mlp/down"):
            leaves[path] = quantize(leaves[path], contraction_axes(declared[path]), 4, 32)
    written = write_gguf(tmp_path / "model.gguf", EVEN, unflatten_dict(leaves, sep="/"), byte_tokenizer())
    types = {name.split(".")[-2]: type for name, (type, _, _) in read(tmp_path / "model.gguf")[1].items()}
    assert (types["ffn_up"], types["ffn_down"]) == ("Q8_0", "Q4_0")
    assert any("quantized again to Q8_0: GGUF has no blocks" in note for note in written.notes)


def test_a_quantized_run_folder(tmp_path):
    """Of a mix in which the periods of a layer group differ, so that their parameters are not stacked."""
    config = dataclasses.replace(EVEN, num_hidden_layers=4)
    model = Plamo2(config, scan_layers=False)
    params = init_params(model, jax.random.key(0))
    declared = flatten_dict(declarations(model), sep="/")
    leaves = flatten_dict(params, sep="/")
    for path, bits in (("run_0_period_0/layer_0/mlp/down", 4), ("run_0_period_1/layer_1/mlp/gate", 8)):
        leaves[path] = quantize(leaves[path], contraction_axes(declared[path]), bits, 32)
    leaves["run_0_period_1/layer_1/mlp/up"] = quantize(leaves["run_0_period_1/layer_1/mlp/up"], (-2,), 4, 32)
    params = unflatten_dict(leaves, sep="/")
    save_quantized(tmp_path / "model", config, params, byte_tokenizer(), method="test")
    assert not load_model(tmp_path / "model", quantized=True).scan_layers
    to_gguf(tmp_path / "model", tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", config, params, byte_tokenizer(), name="model")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    keys, tensors = read(tmp_path / "a.gguf")
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    types = {name: type for name, (type, _, _) in tensors.items() if type[0] == "Q"}
    # A matrix of 8 bits and one of 4 bits share a tensor.
    assert types == {"blk.0.ffn_down.weight": "Q4_0", "blk.3.ffn_up.weight": "Q8_0"}
    gate, up = (leaves[f"run_0_period_1/layer_1/mlp/{part}"].dequantize().T for part in ("gate", "up"))
    np.testing.assert_allclose(tensors["blk.3.ffn_up.weight"][2], np.concatenate([gate, up]), rtol=2**-11)
    assert "has no steps" in refusal(tmp_path, tmp_path / "model", step=1)


def test_what_gguf_cannot_hold_is_quantized_again_and_reported(tmp_path, even_params):
    params = quantized(even_params, 4, 32, False)
    written = write_gguf(tmp_path / "model.gguf", EVEN, params, byte_tokenizer(), kind="q4_0")
    assert any("dequantized and quantized again to Q4_0, Q8_0: GGUF has no blocks" in note for note in written.notes)
    _, tensors = read(tmp_path / "model.gguf")
    exact = dequantized_tensors(params, tmp_path)["blk.0.ffn_up.weight"][2]
    blocks = gguf.quants.quantize(exact, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(
        tensors["blk.0.ffn_up.weight"][2], gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    )
    written = write_gguf(tmp_path / "f32.gguf", EVEN, params, byte_tokenizer(), kind="f32")
    assert any("dequantized to F32" in note for note in written.notes)


def refusal(tmp_path, source, **options):
    """The message of a refused conversion, which must leave no file behind."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(PlamoError) as caught:
        to_gguf(source, tmp_path / "new" / "model.gguf", **options)
    assert set(tmp_path.rglob("*")) == before
    return str(caught.value)


def test_refusals(tmp_path, model, golden_tokenizer):
    assert "1 to 1,073,741,824" in refusal(tmp_path, model, context_length=0)
    assert "has no steps" in refusal(tmp_path, model, step=3)
    with pytest.raises(ConvertError, match="already exists"):
        to_gguf(model, model / "config.json")
    (model / "tokenizer.jsonl").rename(model / "other")
    assert "has no tokenizer.jsonl" in refusal(tmp_path, model)
    two = dataclasses.replace(CONFIG, rope_local_theta=1e3)
    other = write_public(tmp_path / "two", normal_tensors(two), two)
    (other / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    assert "one RoPE base" in refusal(tmp_path, other)
    attention = dataclasses.replace(EVEN, mamba_enabled=False)
    with pytest.raises(ConvertError, match="no Mamba layer"):
        write_gguf(tmp_path / "model.gguf", attention, {}, byte_tokenizer())


@pytest.mark.parametrize(("value", "kind", "message"), [(np.nan, "f32", "NaN or infinity"), (7e4, "q8_0", "±65504")])
def test_values_that_no_file_can_hold(tmp_path, golden_tokenizer, value, kind, message):
    """In the last tensor, after everything else is written."""
    tensors = normal_tensors()
    tensors["lm_head.weight"][-1, -1] = value
    folder = write_public(tmp_path / "model", tensors, CONFIG)
    (folder / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    text = refusal(tmp_path, folder, kind=kind)
    assert "tensor output.weight" in text
    assert message in text


def test_eight_bits_do_not_become_four(tmp_path, even_params):
    params = quantized(even_params, 8, 32)
    with pytest.raises(ConvertError, match="they would be quantized twice"):
        write_gguf(tmp_path / "model.gguf", EVEN, params, byte_tokenizer(), kind="q4_0")
    scale = params["embedding"].scales.at[3, 0].set(jnp.nan)
    params["embedding"] = params["embedding"].replace(scales=scale)
    with pytest.raises(ConvertError, match=r"token_embd.weight has a scale that is NaN"):
        write_gguf(tmp_path / "model.gguf", EVEN, params, byte_tokenizer())
    assert not list(tmp_path.iterdir())


def test_the_context_of_full_attention(tmp_path, golden_tokenizer):
    """Without a window, llama.cpp is exact at every length. A base that no layer uses does not matter."""
    full = dataclasses.replace(CONFIG, full_attention_idx=(1, 3, 5), rope_local_theta=1e3)
    folder = write_public(tmp_path / "model", normal_tensors(full), full)
    (folder / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    written = to_gguf(folder, tmp_path / "model.gguf")
    keys, _ = read(tmp_path / "model.gguf")
    assert (keys["plamo2.context_length"], keys["plamo2.rope.freq_base"]) == (4096, 1e5)
    assert not written.notes
    to_gguf(folder, tmp_path / "short.gguf", context_length=512)
    assert read(tmp_path / "short.gguf")[0]["plamo2.context_length"] == 512


def test_the_command(tmp_path, model, capsys, monkeypatch):
    assert main(["convert", "to-gguf", str(model), str(tmp_path / "model.gguf"), "--type", "q4_0"]) == 0
    captured = capsys.readouterr()
    assert f" {(tmp_path / 'model.gguf').stat().st_size:,} bytes, tensors: " in captured.out
    assert captured.err.count("warning: ") == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["convert", "to-gguf", str(model), str(tmp_path / "again.gguf")]) == 2
    assert "with the extra gguf" in capsys.readouterr().err
