"""A train state in a mapped file, in place of the memory of accelerators.

On the CPU backend, an array may lie in the pages of a mapped file. These pages do not count as the process's own memory (RssAnon in
/proc/self/status), so what a save needs besides the state can be measured. The file is smaller than the state: shards overlap in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

Bounds = tuple[tuple[int, int], ...]
"""First index and end index of a shard along each dimension of its array."""
_PAGE = 4096
_STARTS = 2**14
"""Pages at which a shard may begin."""


def write(path: Path, abstract: Any) -> None:
    """Write random values for a state, and in a file beside it where the shards of each array begin.

    For each dtype, the file has a little more values than the largest shard. A shard begins at a random page of them.

    Args:
        path: file to write.
        abstract: tree of `jax.ShapeDtypeStruct` with shardings.
    """
    leaves, rng = jax.tree.leaves(abstract), np.random.default_rng(0)
    shards = [list(dict.fromkeys(_all_bounds(leaf))) for leaf in leaves]
    largest: dict[np.dtype, int] = {}
    for leaf, parts in zip(leaves, shards, strict=True):
        dtype = np.dtype(leaf.dtype)
        largest[dtype] = max(largest.get(dtype, 0), *map(_size, parts))
    begins = {}
    with path.open("wb") as file:
        for dtype, size in largest.items():
            begins[dtype] = file.tell()
            count = size + _STARTS * _PAGE // dtype.itemsize
            # Integers are the step, counts and the random key.
            values = np.ones(count, dtype) if dtype.kind in "iu" else rng.standard_normal(count, np.float32)
            file.write(values.astype(dtype).view(np.uint8).data)
            file.write(bytes(-file.tell() % _PAGE))
    index = [
        [[bounds, begins[np.dtype(leaf.dtype)] + int(rng.integers(_STARTS)) * _PAGE] for bounds in parts]
        for leaf, parts in zip(leaves, shards, strict=True)
    ]
    _index_path(path).write_text(json.dumps(index))


def read(path: Path, abstract: Any) -> Any:
    """Return the state. Its arrays are pages of the file.

    Args:
        path: file of `write`.
        abstract: the tree that `write` had, on as many devices.
    """
    leaves, tree = jax.tree.flatten(abstract)
    parts = {(i, bounds): part for i, bounds, part in _parts(path, abstract)}

    def array(i: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda cuts: parts[i, _bounds(cuts, leaf.shape)])

    return jax.block_until_ready(jax.tree.unflatten(tree, [array(i, leaf) for i, leaf in enumerate(leaves)]))


def is_equal(path: Path, state: Any) -> bool:
    """Return whether a state has the values of the file. It may lie on other devices than those of `write`."""
    leaves = jax.tree.leaves(state)
    for i, bounds, part in _parts(path, state):
        for shard in leaves[i].addressable_shards:
            other = _bounds(shard.index, leaves[i].shape)
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, other, strict=True)]
            if any(begin >= end for begin, end in common):
                continue
            if not np.array_equal(_cut(part, bounds, common), _cut(np.asarray(shard.data), other, common)):
                return False
    return True


def _parts(path: Path, tree: Any) -> Iterator[tuple[int, Bounds, np.ndarray]]:
    """Yield the number of an array, the bounds of a shard, and the shard as a view of the file."""
    # Writable, because jax copies arrays that are read-only. Nothing is written.
    file = np.asarray(np.memmap(path, np.uint8, "r+"))
    index = json.loads(_index_path(path).read_text())
    for i, (leaf, shards) in enumerate(zip(jax.tree.leaves(tree), index, strict=True)):
        for pairs, start in shards:
            bounds = tuple((begin, end) for begin, end in pairs)
            data = file[start : start + _size(bounds) * leaf.dtype.itemsize]
            yield i, bounds, data.view(leaf.dtype).reshape([end - begin for begin, end in bounds])


def _cut(part: np.ndarray, bounds: Bounds, common: list[tuple[int, int]]) -> np.ndarray:
    return part[tuple(slice(a - first, b - first) for (first, _), (a, b) in zip(bounds, common, strict=True))]


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _all_bounds(leaf: jax.ShapeDtypeStruct) -> list[Bounds]:
    return [_bounds(cuts, leaf.shape) for cuts in leaf.sharding.devices_indices_map(leaf.shape).values()]


def _bounds(cuts: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(cut.indices(size)[:2] for cut, size in zip(cuts, shape, strict=True))


def _size(bounds: Bounds) -> int:
    return math.prod(end - begin for begin, end in bounds)
