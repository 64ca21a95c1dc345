"""There and back: the same bits, in files that safetensors itself reads."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig, preset
from plamo2_jax.convert.hf import from_public, to_public
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.read import read_params
from plamo2_jax.convert.write import write_params
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.checkpoints import CONFIG, DTYPES, random_tensors, write_public, write_sharded


def read_folder(folder):
    """Every tensor of a folder, by safetensors' own reader, and the files they came from."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}, files


def assert_same_bytes(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor.shape, tensor.dtype) == (right[name].shape, right[name].dtype), name
        assert tensor.tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("write", [write_public, write_sharded])
def test_public_to_ours_to_public(tmp_path, write, dtype):
    tensors = random_tensors(dtype=dtype)
    source = write(tmp_path / "public", tensors)
    from_public(source, tmp_path / "run")
    to_public(tmp_path / "run", tmp_path / "back", max_shard_bytes=20_000)
    back, files = read_folder(tmp_path / "back")
    assert_same_bytes(tensors, back)
    assert len(files) > 3
    for file in files:
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert sum(tensor.nbytes for tensor in load_file(file).values()) <= 20_000 or len(opened.keys()) == 1
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["torch_dtype"] == dtype
    assert ModelConfig.from_hf(config) == CONFIG
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "public", "run"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ours_to_public_to_ours(tmp_path, dtype):
    config = preset("tiny", vocab_size=96, hidden_size=32, hidden_size_per_head=8)
    params = jax.jit(lambda key: init_params(Plamo2(config), key))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    checkpoint.save_model(tmp_path / "run", config, params)
    to_public(tmp_path / "run", tmp_path / "public")
    assert [path.name for path in (tmp_path / "public").glob("*.safetensors*")] == ["model.safetensors"]
    from_public(tmp_path / "public", tmp_path / "again")
    again = load_model(tmp_path / "again", dtype=dtype)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(again.params)} == {DTYPES[dtype]}


def test_the_dtype_asked_for_is_rounded_to_nearest_even(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(t.shape).astype(np.float32) for name, t in random_tensors().items()}
    source = write_public(tmp_path / "public", tensors)
    from_public(source, tmp_path / "run", dtype="bfloat16")
    to_public(tmp_path / "run", tmp_path / "bfloat16")
    assert_same_bytes(
        {k: t.astype(DTYPES["bfloat16"]) for k, t in tensors.items()}, read_folder(tmp_path / "bfloat16")[0]
    )
    to_public(tmp_path / "run", tmp_path / "float32", dtype="float32")
    wider = {k: t.astype(DTYPES["bfloat16"]).astype(np.float32) for k, t in tensors.items()}
    assert_same_bytes(wider, read_folder(tmp_path / "float32")[0])


def test_files_of_mixed_dtypes_become_float32(tmp_path):
    tensors = random_tensors(dtype="bfloat16")
    tensors["model.layers.layers.0.mixer.A_log"] = np.linspace(0, 1, 8, dtype=np.float32)
    params = read_params(write_public(tmp_path / "public", tensors), CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        params["run_0"]["layer_0"]["mixer"]["a_log"][0], np.linspace(0, 1, 8, dtype=np.float32)
    )


def test_convolutions_as_mlx_stores_them_are_read_too(tmp_path, tensors):
    mlx = {name: t.reshape(t.shape[0], -1, 1) if "conv1d" in name else t for name, t in tensors.items()}
    expected = read_params(write_public(tmp_path / "public", tensors), CONFIG)
    params = read_params(write_public(tmp_path / "mlx", mlx), CONFIG)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)),
        params,
        expected,
    )


def test_the_lm_head_of_a_tied_file_is_ignored(tmp_path):
    config = preset("tiny", vocab_size=96, hidden_size=32, hidden_size_per_head=8)
    tensors = random_tensors(config)
    source = write_public(
        tmp_path / "public", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, config
    )
    params = read_params(source, config)
    assert "lm_head" not in params
    write_params(tmp_path, config, params, dtype="float32", max_shard_bytes=10**9)
    assert_same_bytes(tensors, load_file(tmp_path / "model.safetensors"))


def test_the_tokenizer_goes_along(tmp_path, public, golden_tokenizer):
    (public / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    (public / "chat_template.jinja").write_text("{{ messages }}\n")
    from_public(public, tmp_path / "run")
    to_public(tmp_path / "run", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.jsonl").read_bytes() == golden_tokenizer.read_bytes()
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "{{ messages }}\n"
    written = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    # Older readers look for the chat template there.
    assert written["chat_template"] == "{{ messages }}\n"
    assert (written["bos_token"], written["eos_token"], written["pad_token"], written["unk_token"]) == (
        "<|plamo:bos|>",
        "<|plamo:eos|>",
        "<|plamo:pad|>",
        "<|plamo:unk|>",
    )
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": [2, 1, 4],
    }
    assert load_model(tmp_path / "back").tokenizer.fingerprint == Tokenizer.load(golden_tokenizer).fingerprint


def test_half_precision_is_read_exactly(tmp_path):
    numbers = np.array([0.0, -0.0, 1 / 3, 65504, 6e-8, 2.0**-14, 1 + 2.0**-10, -1.00390625], np.float16)
    tensors = {name: np.resize(numbers, tensor.shape).astype(np.float16) for name, tensor in random_tensors().items()}
    folder = write_public(tmp_path / "public", tensors)
    for dtype in (jnp.float32, jnp.bfloat16):
        params = read_params(folder, CONFIG, dtype=dtype)
        expected = numbers.astype(np.float32).astype(dtype)
        np.testing.assert_array_equal(np.asarray(params["embedding"]).reshape(-1)[:8], expected)
        assert params["embedding"].dtype == dtype
    # Written as float32, which holds every float16 exactly.
    assert read_params(folder, CONFIG)["embedding"].dtype == jnp.float32
