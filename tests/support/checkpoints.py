"""Small checkpoints in the public layout, written by safetensors itself."""

import json
import math

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from plamo2_jax.config import preset
from plamo2_jax.convert.layout import public_tensors

# Two runs and a remainder, full attention in one layer, two key/value heads, untied.
CONFIG = preset(
    "tiny",
    hidden_size=32,
    num_hidden_layers=7,
    intermediate_size=48,
    hidden_size_per_head=8,
    mamba_num_heads=8,
    mamba_d_state=4,
    attention_window_size=6,
    full_attention_idx=(3,),
    rope_theta=1e5,
    rope_local_theta=1e3,
    vocab_size=864,
    tie_word_embeddings=False,
)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def random_tensors(config=CONFIG, dtype="float32", seed=0):
    """Tensors of any bits: zeros of both signs, infinities and NaNs with payloads among them."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[dtype]
    return {
        tensor.name: np.frombuffer(rng.bytes(math.prod(tensor.shape) * dtype.itemsize), dtype).reshape(tensor.shape)
        for tensor in public_tensors(config)
    }


def write_public(folder, tensors, config=CONFIG):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    return folder


def write_sharded(folder, tensors, config=CONFIG, shards=3):
    """The same in several files with an index."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    for file, members in files.items():
        save_file({name: tensors[name] for name in members}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, members in files.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    return folder
