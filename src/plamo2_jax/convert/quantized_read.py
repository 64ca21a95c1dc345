"""Reading the parameters of a quantized run folder, slice by slice, directly into the arrays of each device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import blocks
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.quantized import (
    SCALES,
    VALUES,
    ZERO_POINTS,
    Format,
    QuantizedFile,
    open_quantized,
    unpack,
)
from plamo2_jax.model.plamo2 import period_name, period_paths
from plamo2_jax.model.quantized import QuantizedArray, stored_order


def read_quantized(folder: Path, config: ModelConfig, abstract: Any) -> dict:
    """Read the parameters of a quantized run folder. Each process reads only the slices of its own devices.

    Args:
        folder: Quantized run folder.
        config: Config of its model.
        abstract: Tree of `jax.ShapeDtypeStruct` of the model's parameters, with or without a scan over layers. Values and scales are
            sharded like the matrix; other parameters get the dtype and the sharding of their leaf.

    Returns:
        The parameter tree. It is stacked if `abstract` is and all periods of a layer group have the same formats; otherwise it is the tree
        of a model without a scan over layers.

    Raises:
        PlamoError: A file or tensor is missing or damaged, or a scale is not positive and finite. The message names it.
    """
    file = open_quantized(folder, config)
    if "run_0" in abstract and not file.is_uniform(config):
        abstract = separate(abstract, config)
    leaves = flax.traverse_util.flatten_dict(abstract, sep="/")
    params = {path: _read(file, config, path, leaf) for path, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict(params, sep="/")


def separate(abstract: dict, config: ModelConfig) -> dict:
    """Return the shapes and shardings of a model without a scan over layers, given the shapes and shardings of a model with a scan."""

    def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = _sharding(leaf)
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)

    separate = dict(abstract)
    for i, group in enumerate(config.layer_groups):
        period = jax.tree.map(one, separate.pop(f"run_{i}"))
        separate |= {period_name(f"run_{i}", j): period for j in range(group.count)}
    return separate


def _sharding(leaf: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    return leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])


def _read(file: QuantizedFile, config: ModelConfig, path: str, leaf: jax.ShapeDtypeStruct) -> Any:
    paths, stacked = period_paths(config, path)
    form = file.quantization.tensors.get(paths[0])
    if form is None:
        return _array(file, paths, stacked, leaf.shape, leaf.dtype, _sharding(leaf))
    contracted = file.contracted[paths[0]]
    outputs = len(leaf.shape) - len(contracted)
    order = stored_order(len(leaf.shape), contracted)
    shape = tuple(leaf.shape[i] for i in order)
    sharding = _sharding(leaf)
    spec = (*sharding.spec, *(None,) * len(shape))[: len(shape)] if isinstance(sharding, NamedSharding) else ()

    def place(shape: tuple[int, ...]) -> jax.sharding.Sharding:
        if not spec:
            return sharding
        stored = [spec[i] for i in order][: len(shape)]
        sharded = NamedSharding(sharding.mesh, PartitionSpec(*stored))
        try:
            sharded.shard_shape(shape)
        except ValueError:
            # A single group, or groups that the devices do not divide.
            sharded = NamedSharding(sharding.mesh, PartitionSpec(*stored[:outputs]))
        return sharded

    def array(part: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        names = [f"{each}.{part}" for each in paths]
        return _array(file, names, stacked, shape, dtype, place(shape), packed=part == VALUES and form.values == "int4")

    grouped = (*shape[:outputs], form.groups)
    values = array(VALUES, shape, _value_dtype(form))
    zero_points = array(ZERO_POINTS, grouped, _value_dtype(form)) if form.zero_points else None
    scales = array(SCALES, grouped, np.float32)
    return QuantizedArray(values, scales, zero_points, contracted, form.activations)


def _value_dtype(form: Format) -> Any:
    return {"int8": np.int8, "int4": jnp.int4, "float8": jnp.float8_e4m3fn}[form.values]


def _array(
    file: QuantizedFile,
    names: list[str],
    stacked: bool,
    shape: tuple[int, ...],
    dtype: Any,
    sharding: jax.sharding.Sharding,
    packed: bool = False,
) -> jax.Array:
    """Read one array slice by slice. If `stacked`, the first axis is that of `names`."""
    dtype = np.dtype(dtype)
    read: dict[tuple, np.ndarray] = {}

    def slice_of(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))
        if bounds not in read:
            inner = bounds[1:] if stacked else bounds
            chosen = names[slice(*bounds[0])] if stacked else names
            parts = [_slice(file, name, inner, dtype, packed) for name in chosen]
            read[bounds] = np.stack(parts) if stacked else parts[0]
        return read[bounds]

    return jax.make_array_from_callback(shape, sharding, slice_of, dtype=dtype)


def _slice(
    file: QuantizedFile, name: str, bounds: tuple[tuple[int, int], ...], dtype: np.dtype, packed: bool
) -> np.ndarray:
    stored = file.tensors[name]
    mapped = stored.map(0, stored.shape)
    if packed:
        *outer, (start, stop) = bounds
        found = unpack(mapped[(*(slice(*each) for each in outer), slice(start // 2, -(-stop // 2)))])
        return found[..., start % 2 : start % 2 + stop - start]
    found = np.array(mapped[tuple(slice(*each) for each in bounds)])
    if problem := _problem(name, found, dtype):
        raise ConvertError(f"{stored.file}: tensor {name} {problem}. Quantize the model again")
    return found.astype(dtype, copy=False)


def _problem(name: str, array: np.ndarray, dtype: np.dtype) -> str | None:
    """Return what is wrong with the values of a tensor, or None. NaN in other parameters is reported by `warn_of_nonfinite`."""
    checks: tuple[tuple[bool, Callable[[np.ndarray], np.ndarray], str], ...] = (
        (
            name.endswith(f".{SCALES}"),
            lambda part: np.isfinite(part) & (part > 0),
            "holds a scale that is not positive and finite",
        ),
        (
            name.endswith(f".{VALUES}") and array.dtype.itemsize == 1 and array.dtype.kind not in "iu",
            lambda part: np.isfinite(part.astype(np.float32)),
            "holds NaN: float8 values must be from -448 to 448",
        ),
        (
            dtype == jnp.int4,
            lambda part: (part >= -8) & (part <= 7),
            "holds a zero point out of range: zero points of int4 must be from -8 to 7",
        ),
    )
    for applies, allowed, message in checks:
        if applies and not all(allowed(array[rows]).all() for rows in blocks(array)):
            return message
    return None
