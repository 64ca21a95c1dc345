"""Files of the shards that one process holds of a pytree of arrays: one file of raw bytes for each leaf.

The files are meant for the same job after a restart. Each process reads its own shards again, without other processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Bounds = tuple[tuple[int, int], ...]
"""First index and end index of a shard along each dimension of its array."""


def path_name(path: Sequence[Any]) -> str:
    """Return the name of a leaf: the keys of its path in the pytree, joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def copy_shards(tree: Any) -> dict[str, dict[Bounds, np.ndarray]]:
    """Copy the shards of this process to host memory. Copies of a shard on several devices are copied once.

    The result does not alias the arrays, so that they may be donated afterwards.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shards = {path_name(path): _distinct(leaf) for path, leaf in leaves}
    for parts in shards.values():
        for data in parts.values():
            data.copy_to_host_async()
    return {name: {bounds: _to_host(data) for bounds, data in parts.items()} for name, parts in shards.items()}


def write_shards(folder: Path, shards: Mapping[str, Mapping[Bounds, np.ndarray]]) -> dict[str, Any]:
    """Write one file for each leaf. Return their index as JSON values, for `read_shards`."""
    index: dict[str, Any] = {}
    for number, (name, parts) in enumerate(shards.items()):
        file = f"{number}.bin"
        with (folder / file).open("wb") as output:
            for part in parts.values():
                output.write(part.reshape(-1).view(np.uint8).data)
        dtype = next(iter(parts.values())).dtype.name
        index[name] = {"file": file, "dtype": dtype, "shards": [list(map(list, bounds)) for bounds in parts]}
    return index


def find_difference(index: Mapping[str, Any], abstract: Any) -> str | None:
    """Compare an index with the shards that this process needs. Return a description of the first difference, or None.

    Args:
        index: Result of `write_shards`.
        abstract: Tree of `jax.ShapeDtypeStruct` with shardings.
    """
    wanted = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    if different := sorted(wanted.keys() ^ index.keys()):
        return f"it holds other tensors ({different[0][:200]})"
    for name, leaf in wanted.items():
        if index[name]["dtype"] != np.dtype(leaf.dtype).name:
            return f"{name} has dtype {index[name]['dtype'][:30]}, not {np.dtype(leaf.dtype).name}"
        if not set(_needed(leaf).values()) <= set(_bounds_of(index[name])):
            return f"it does not hold the shards of {name} that this process needs"
    return None


def read_shards(folder: Path, index: Mapping[str, Any], abstract: Any) -> Any:
    """Read arrays from the files of `write_shards`, one leaf at a time.

    Args:
        folder: Folder of the files, compared with their checksums by the caller.
        index: Result of `write_shards`, without differences.
        abstract: Tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
        OSError, ValueError: A file is missing or too short.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    return jax.tree.unflatten(tree, [_read_leaf(folder, index[path_name(path)], leaf) for path, leaf in leaves])


def _read_leaf(folder: Path, entry: Mapping[str, Any], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    dtype = jnp.dtype(leaf.dtype)
    content = np.fromfile(folder / entry["file"], np.uint8)
    parts, offset = {}, 0
    for bounds in _bounds_of(entry):
        shape = tuple(end - start for start, end in bounds)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        parts[bounds] = content[offset : offset + size].view(dtype).reshape(shape)
        offset += size
    # On CPU, an array may otherwise share memory with the whole file.
    arrays = [jax.device_put(parts[bounds], device, may_alias=False) for device, bounds in _needed(leaf).items()]
    return jax.block_until_ready(jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays))


def _distinct(leaf: jax.Array) -> dict[Bounds, jax.Array]:
    found: dict[Bounds, jax.Array] = {}
    for shard in leaf.addressable_shards:
        found.setdefault(_bounds(shard.index, leaf.shape), shard.data)
    return found


def _to_host(data: jax.Array) -> np.ndarray:
    # On CPU, `np.asarray` returns a view of the device's memory, which the next step overwrites.
    on_cpu = all(device.platform == "cpu" for device in data.devices())
    return np.array(data, order="C") if on_cpu else np.ascontiguousarray(np.asarray(data)).reshape(data.shape)


def _needed(leaf: jax.ShapeDtypeStruct) -> dict[jax.Device, Bounds]:
    found = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    return {device: _bounds(index, leaf.shape) for device, index in found.items()}


def _bounds_of(entry: Mapping[str, Any]) -> list[Bounds]:
    return [tuple((int(start), int(end)) for start, end in bounds) for bounds in entry["shards"]]


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
