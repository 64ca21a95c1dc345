"""Merging models tensor by tensor, the implementation of `plamo2 merge`.

Tensors have the public layout, as in other merge tools, so methods that depend on a whole tensor (lengths, angles, thresholds) give the
same result. Arithmetic is float32 with float64 sums. Memory holds at most one tensor of each model and one more:
each result is written at once to its place in a safetensors file, whose header is known in advance.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.convert.chunked_io import Progress, blocks
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.read import common_dtype, float_dtype
from plamo2_jax.convert.small_files import write_small_files
from plamo2_jax.convert.write import Shard, header, plan_shards, write_index
from plamo2_jax.model import Plamo2, logical_axes
from plamo2_jax.model.axes import LAYERS
from plamo2_jax.storage import new_folder, require_empty
from plamo2_jax.surgery.merge import methods
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.sources import MergeError, Source, open_source
from plamo2_jax.tokenizer.template_files import chat_template_files
from plamo2_jax.validation import require_kind

MERGED = "merge.json"
"""File beside the merged model with its sources and settings."""

# Config fields that do not change what a model computes.
_WITHOUT_EFFECT = ("initializer_range", "max_position_embeddings", "mamba_chunk_size")


def merge_tensor(
    config: MergeConfig, name: str, weights: Sequence[float], models: Sequence[np.ndarray], base: np.ndarray | None
) -> np.ndarray:
    """Merge one tensor. The result uses the memory of one argument; all arguments are overwritten.

    Args:
        name: Name of the tensor. Random drops depend only on the name, on the seed and on the index of the model.
        weights: One weight per model.
        models: float32 arrays of one shape, one per model.
        base: float32 array of the same shape; None for methods without base.
    """
    method = config.method
    if method == "linear":
        return methods.linear(models, weights)
    if method == "slerp":
        return methods.slerp(models[0], models[1], weights[1] / sum(weights))
    if method == "karcher":
        return methods.karcher(models, weights)
    if method == "model_stock":
        return methods.model_stock(base, models)
    if method == "nearswap":
        return methods.nearswap(base, models[0], config.t)

    def sparsify(i: int, delta: np.ndarray) -> None:
        rng = np.random.default_rng([config.seed, i, zlib.crc32(name.encode())])
        if method == "ties":
            methods.keep_largest(delta, config.kept)
        elif method == "breadcrumbs":
            methods.keep_middle(delta, config.kept, config.gamma)
        elif method == "della":
            methods.drop_by_rank(delta, config.kept, config.epsilon, rng, config.rescale)
        elif method in ("dare_ties", "dare_linear"):
            methods.drop_random(delta, config.kept, rng, config.rescale)

    elect = method in ("ties", "dare_ties", "della")
    options = {"sparsify": sparsify, "elect": elect, "normalize": config.normalizes, "scale": config.scale}
    return methods.add_differences(base, models, weights, **options)


def merge(
    models: Sequence[str],
    output: str | os.PathLike[str],
    config: MergeConfig,
    *,
    base: str | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
    on_write: Progress | None = None,
) -> None:
    """Merge models into a folder in Hugging Face format.

    Args:
        models: Names of models (`convert.names.ModelName`).
        output: Folder to create; it must not exist or must be empty.
        base: Name of the base model, from which differences are taken.
        dtype: Dtype of the files, float32 or bfloat16; None: the dtype of the models.
        max_shard_bytes: Largest number of tensor bytes in one safetensors file.
        on_write: Called after each tensor with its bytes and the bytes of the whole model.

    Raises:
        PlamoError: The models differ in shape or tokenizer, or one is missing or damaged. No file is left behind.
    """
    require_empty(Path(output))
    dtype = float_dtype(dtype)
    require_kind(config, MergeConfig, "config")
    config.check(len(models), base is not None)
    # The chat template is copied from the first model that has one.
    files = chat_template_files(*(ModelName.parse(name).folder for name in models))
    sources = [open_source(name) for name in models]
    origin = None if base is None else open_source(base)
    everything = [*sources, *([] if origin is None else [origin])]
    _check_alike(everything)
    first = everything[0]
    if dtype is None:
        dtype = common_dtype(source.dtype for source in everything)
    tensors = public_tensors(first.config)
    descriptions = describe(first)
    weights = dict(zip(descriptions, config.weights_of(list(descriptions.values()), len(sources)), strict=True))
    shards = plan_shards(tensors, dtype, max_shard_bytes)
    with new_folder(output) as partial:
        places = _lay_out(partial, shards, dtype)
        total = sum(shard.bytes(dtype) for shard in shards)
        # Tensors from one stacked parameter are read one after the other, so its chunks in a checkpoint are decoded once.
        for tensor in sorted(tensors, key=lambda tensor: (tensor.parts[0].path, tensor.parts[0].period or 0)):
            start = None if origin is None else origin.read(tensor)
            merged = merge_tensor(
                config, tensor.name, weights[tensor.name], [source.read(tensor) for source in sources], start
            )
            del start
            _write(*places[tensor.name], merged.reshape(-1), dtype)
            del merged
            if on_write:
                on_write(tensor.size * dtype.itemsize, total)
        write_index(partial, shards, total)
        tokenizer = next((source.tokenizer for source in everything if source.tokenizer is not None), None)
        write_small_files(partial, first.config, tokenizer, dtype, files)
        settings = {"models": list(models), "base": base, **dataclasses.asdict(config)}
        resolved = {"density": config.kept, "normalize": config.normalizes}
        checkpoint.write_json(partial / MERGED, settings | resolved)


def describe(source: Source) -> dict[str, str]:
    """Return a description of each tensor by public name, for `weights_for`: `NAME PARAMETER,... axes=AXIS,...`.

    Example: `model.layers.layers.1.mixer.o_proj.weight run_0/layer_1/mixer/o_proj axes=heads,head_dim,embed`.
    """
    axes = flax.traverse_util.flatten_dict(logical_axes(Plamo2(source.config)), sep="/")
    result = {}
    for tensor in public_tensors(source.config):
        paths = [part.path for part in tensor.parts]
        names = dict.fromkeys(name for path in paths for name in axes[path] if name not in (None, LAYERS))
        result[tensor.name] = f"{tensor.name} {','.join(paths)} axes={','.join(names)}"
    return result


def _check_alike(sources: Sequence[Source]) -> None:
    first = sources[0]
    for other in sources[1:]:
        pairs = zip(first.config.to_json().items(), other.config.to_json().values(), strict=True)
        different = [f"{name} is {a!r} and {b!r}" for (name, a), b in pairs if a != b and name not in _WITHOUT_EFFECT]
        if different:
            raise MergeError(
                f"{first.name} and {other.name} have different shapes ({'; '.join(different)}): merged models must have equal shapes"
            )
    named = [source for source in sources if source.tokenizer is not None]
    for other in named[1:]:
        if other.tokenizer.fingerprint != named[0].tokenizer.fingerprint:
            raise MergeError(
                f"{named[0].name} and {other.name} have different tokenizers ({named[0].tokenizer.fingerprint[:12]}, "
                f"{other.tokenizer.fingerprint[:12]}): merged models must have the same tokenizer"
            )


def _lay_out(folder: Path, shards: Sequence[Shard], dtype: np.dtype) -> dict[str, tuple[Path, int]]:
    """Create the files with their headers and full lengths. Return the file and byte offset of each tensor."""
    places: dict[str, tuple[Path, int]] = {}
    for shard in shards:
        head = header(shard.tensors, dtype)
        path, offset = folder / shard.name, len(head)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(offset + shard.bytes(dtype))
        for tensor in shard.tensors:
            places[tensor.name] = path, offset
            offset += tensor.size * dtype.itemsize
    return places


def _write(path: Path, offset: int, values: np.ndarray, dtype: np.dtype) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        for rows in blocks(values):
            view = memoryview(values[rows].astype(dtype, copy=False).view(np.uint8))
            while len(view):
                view = view[file.write(view) :]
