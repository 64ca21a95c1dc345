"""Merging models tensor by tensor, the implementation of `plamo2 merge`.

The tensors are those of the public layout, as in other merge tools, so methods that depend on a whole tensor (lengths, angles,
thresholds) give the same result. Arithmetic is float32 with float64 sums. Memory holds at most one tensor of each model and one more:
each result is written at once to its place in a safetensors file, whose header is known in advance.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.convert.chunked_io import Progress, blocks
from plamo2_jax.convert.files import CONFIG, DTYPES, INDEX
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.names import ModelName
from plamo2_jax.convert.read import common_dtype
from plamo2_jax.convert.write import Shard, header, plan_shards
from plamo2_jax.model import Plamo2, logical_axes
from plamo2_jax.model.axes import LAYERS
from plamo2_jax.storage import new_folder, require_empty, write_whole
from plamo2_jax.surgery.merge import methods
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.sources import MergeError, Source, open_source
from plamo2_jax.tokenizer.template_files import chat_template_files

MERGED = "merge.json"
"""File beside the merged model with its sources and settings."""

_ELECTS = ("ties", "dare_ties", "della")
# Config fields that do not change what a model computes.
_WITHOUT_EFFECT = ("initializer_range", "max_position_embeddings", "mamba_chunk_size")


def merge_tensor(
    config: MergeConfig, name: str, weights: Sequence[float], models: Sequence[np.ndarray], base: np.ndarray | None
) -> np.ndarray:
    """Merge one tensor. The result uses the memory of one argument; all arguments are overwritten.

    Args:
        config: Settings of the merge.
        name: Name of the tensor. Random drops depend only on it, on the seed and on the index of the model.
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
    sparsify = None
    if method != "task_arithmetic":
        sparsify = [
            _sparsifier(config, np.random.default_rng([config.seed, i, zlib.crc32(name.encode())]))
            for i in range(len(models))
        ]
    return methods.add_differences(
        base,
        models,
        weights,
        sparsify=sparsify,
        elect=method in _ELECTS,
        normalize=config.normalizes,
        scale=config.scale,
    )


def _sparsifier(config: MergeConfig, rng: np.random.Generator) -> methods.Sparsify:
    density = config.kept
    if config.method == "ties":
        return lambda delta: methods.keep_largest(delta, density)
    if config.method == "breadcrumbs":
        return lambda delta: methods.keep_middle(delta, density, config.gamma)
    if config.method == "della":
        return lambda delta: methods.drop_by_rank(delta, density, config.epsilon, rng, config.rescale)
    return lambda delta: methods.drop_random(delta, density, rng, config.rescale)


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
    """Merge models into a folder of the public layout.

    Args:
        models: Folders of the public layout, run folders, or `RUN@STEP`, `RUN@ema`, `RUN@STEP,ema`.
        output: Folder to create; it must not exist or must be empty.
        config: Settings of the merge.
        base: Base model, from which differences are taken.
        dtype: Dtype of the files, float32 or bfloat16; None: the dtype of the models.
        max_shard_bytes: Largest number of tensor bytes in one safetensors file.
        on_write: Called after each tensor with its bytes and the bytes of the whole model.

    Raises:
        ValueError: The models differ in shape or tokenizer, or one is missing or damaged. No file is left behind.
    """
    output = Path(output).absolute()
    require_empty(output)
    config.check(len(models), base is not None)
    # The chat template is copied from the first model that has one.
    files = chat_template_files(*(ModelName.parse(name).folder for name in models))
    sources = [open_source(name) for name in models]
    origin = None if base is None else open_source(base)
    everything = [*sources, *([] if origin is None else [origin])]
    _check_alike(everything)
    first = everything[0]
    dtype = common_dtype(source.dtype for source in everything) if dtype is None else np.dtype(dtype)
    if dtype not in DTYPES.values():
        raise MergeError(f"dtype {dtype} is not allowed: it must be float32 or bfloat16")
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
        _write_description(partial, everything, first, shards, total, dtype, config, models, base, files)


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
    ours = first.config.to_json()
    for other in sources[1:]:
        theirs = other.config.to_json()
        different = [
            f"{name} is {ours[name]!r} and {theirs[name]!r}"
            for name in ours
            if ours[name] != theirs[name] and name not in _WITHOUT_EFFECT
        ]
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


def _write_description(
    folder: Path,
    sources: Sequence[Source],
    first: Source,
    shards: Sequence[Shard],
    total: int,
    dtype: np.dtype,
    config: MergeConfig,
    models: Sequence[str],
    base: str | None,
    files: Mapping[str, bytes],
) -> None:
    if len(shards) > 1:
        names = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
        checkpoint.write_json(
            folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        )
    checkpoint.write_json(folder / CONFIG, {**first.config.to_hf(), "torch_dtype": dtype.name})
    tokenizer = next((source.tokenizer for source in sources if source.tokenizer is not None), None)
    if tokenizer is not None:
        tokenizer.save(folder)
    for name, content in files.items():
        write_whole(folder / name, content)
    settings = {"models": list(models), "base": base, **dataclasses.asdict(config)}
    checkpoint.write_json(folder / MERGED, {**settings, "density": config.kept, "normalize": config.normalizes})
