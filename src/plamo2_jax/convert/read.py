"""Reading parameters from the public layout, slice by slice, directly into the arrays of each device."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import Progress, blocks
from plamo2_jax.convert.compressed_tensors import QUANTIZATION, is_compressed
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import CONFIG, StoredTensor, check_tensors, find_tensors, read_json
from plamo2_jax.convert.layout import Part, public_tensors
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.model.plamo2 import stacked_path


def read_public_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Read the ModelConfig of a folder in Hugging Face format.

    Raises:
        ConvertError: config.json is missing, outside the folder or not a JSON object, or has another architecture or an invalid value.
    """
    folder = Path(folder)
    values = read_json(folder, CONFIG)
    try:
        if is_compressed(values):
            values = {name: value for name, value in values.items() if name != QUANTIZATION}
        return ModelConfig.from_hf(values)
    except ValueError as error:
        raise ConvertError(f"{folder / CONFIG}: {error}") from error


def read_params(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    *,
    dtype: Any = None,
    shardings: Any = None,
    abstract: Any = None,
    on_read: Progress | None = None,
) -> dict:
    """Read parameters from a folder in Hugging Face format. Each process reads only the slices of its own devices, each slice once.

    Args:
        folder: Folder with model.safetensors, or with model.safetensors.index.json and the files it lists.
        dtype: Dtype of the parameters; None: the dtype of the files (float32 if they mix float32 and bfloat16). float32 is rounded to
            bfloat16 to nearest even.
        shardings: A `jax.sharding.Sharding` for all parameters or a tree of them; None: the first local device.
        abstract: Tree of `jax.ShapeDtypeStruct`, with or without a scan over layers. It replaces `dtype` and `shardings`.
        on_read: Called after each block read with its bytes and the bytes of the whole model.

    Returns:
        Parameter tree with the structure of `plamo2_jax.model.init_params`.

    Raises:
        ConvertError: A file is missing, damaged or outside the folder, or a tensor is missing, unknown or has a wrong shape or dtype.
    """
    folder = Path(folder)
    tensors = public_tensors(config)
    stored = find_tensors(folder)
    check_tensors(folder, stored, tensors, config.tie_word_embeddings)
    if abstract is None:
        dtype = common_dtype(stored[tensor.name].dtype for tensor in tensors) if dtype is None else np.dtype(dtype)
        abstract = with_dtype(abstract_params(Plamo2(config)), dtype, shardings)
    total = sum(tensor.size * stored[tensor.name].dtype.itemsize for tensor in tensors)

    sources: dict[str, list[Source]] = {}
    for tensor in tensors:
        start = 0
        for part in tensor.parts:
            sources.setdefault(part.path, []).append(Source(stored[tensor.name], start, part))
            start += part.size

    leaves = flax.traverse_util.flatten_dict(abstract, sep="/")

    def count(bytes_read: int) -> None:
        if on_read:
            on_read(bytes_read, total)

    params = {path: read_leaf(sources, path, leaf, count) for path, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict(params, sep="/")


def read_leaf(
    sources: Mapping[str, Sequence[Source | None]],
    path: str,
    leaf: jax.ShapeDtypeStruct,
    count: Callable[[int], None] = lambda _: None,
) -> jax.Array:
    """Read one parameter, of a model with or without a scan over layers.

    Args:
        sources: Sources of each parameter of the model with a scan, by path, in the order of the periods; None for periods that are not
            read here.
        path: Path of the parameter.
        leaf: Its shape, dtype and sharding.
        count: Called with the number of bytes after each block read.
    """
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    stacked, period = stacked_path(path)
    found = sources[stacked] if period is None else sources[stacked][period : period + 1]
    layered = period is None and found[0].part.period is not None
    return _make_array(found, layered, leaf.shape, np.dtype(leaf.dtype), sharding, count)


def float_dtype(dtype: Any) -> np.dtype | None:
    """Return a dtype of parameters, given as text or as a dtype; None stays None.

    Raises:
        ConvertError: It is neither float32 nor bfloat16.
    """
    if dtype is None:
        return None
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.float32, ml_dtypes.bfloat16):
        raise ConvertError(f"dtype {dtype} is not allowed: it must be float32 or bfloat16")
    return found


def with_dtype(abstract: Any, dtype: Any, shardings: Any) -> Any:
    """Return a tree of shapes with a dtype, and with one sharding for all leaves or a tree of shardings."""
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings), abstract)
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=s), abstract, shardings)


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the smallest dtype that holds all values exactly: bfloat16 if all dtypes are bfloat16, else float32."""
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return bfloat16 if set(dtypes) == {bfloat16} else np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Source:
    """Source of one period of a parameter: a part of a stored tensor that begins at element `start`."""

    tensor: StoredTensor
    start: int
    part: Part

    def read_into(self, target: np.ndarray, index: tuple[slice, ...], count: Callable[[int], None]) -> None:
        """Copy the slice `index` of this period, in our axis order, into `target`."""
        inverse = self.part.inverse
        mapped = self.tensor.map(self.start, self.part.view)[tuple(index[axis] for axis in inverse)]
        target = target.transpose(inverse)
        for rows in blocks(mapped):
            # Read in file order first. Transposing directly from the map would fetch its pages many times.
            block = np.ascontiguousarray(mapped[rows])
            with np.errstate(invalid="ignore"):  # NaN is copied, not an error
                target[rows] = block
            count(block.nbytes)


def _make_array(
    sources: Sequence[Source],
    layered: bool,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    count: Callable[[int], None],
) -> jax.Array:
    """Read an array slice by slice. If `layered`, the first axis is the axis `layers`, and each period has a source of its own."""
    read: dict[tuple, np.ndarray] = {}

    def slice_of(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(size) for s, size in zip(index, shape, strict=True))
        # Devices that hold copies of a slice share one read.
        if bounds not in read:
            target = _aligned_empty(tuple(stop - start for start, stop, _ in bounds), dtype)
            inner = tuple(slice(start, stop) for start, stop, _ in bounds)
            if not layered:
                sources[0].read_into(target, inner, count)
            else:
                for i, period in enumerate(range(*bounds[0])):
                    sources[period].read_into(target[i], inner[1:], count)
            read[bounds] = target
        return read[bounds]

    return jax.make_array_from_callback(shape, sharding, slice_of, dtype=dtype)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array aligned to 64 bytes, which JAX on CPU uses without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
