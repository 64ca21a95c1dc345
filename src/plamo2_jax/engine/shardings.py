"""Shardings of the arrays of decoding: rows over data × fsdp, heads over tensor."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.model.axes import ROWS, TENSOR
from plamo2_jax.model.cache import AttentionCache, Cache, MambaCache

# The row axis and the head axis of each array of a cache, counted from the end, because a stacked cache has one more first axis.
_ROWS_AND_HEADS = {
    MambaCache: {"conv": (-4, -2), "ssm": (-4, -3)},
    AttentionCache: {
        "k": (-4, -3),
        "v": (-4, -3),
        "positions": (-2, None),
        "segment_ids": (-2, None),
        "k_scales": (-3, -2),
        "v_scales": (-3, -2),
    },
}


def cache_shardings(mesh: Mesh, cache: Cache) -> Cache:
    """Return the NamedSharding of each array of a cache. An axis that the mesh does not divide evenly is replicated."""

    def place(shape: tuple[int, ...], rows: int, heads: int | None) -> NamedSharding:
        spec: list[Any] = [None] * len(shape)
        for axis, over in ((rows, ROWS), (heads, (TENSOR,))):
            if axis is not None and shape[axis] % math.prod(mesh.shape[name] for name in over) == 0:
                spec[axis] = over
        return NamedSharding(mesh, PartitionSpec(*spec))

    def layer(entry: MambaCache | AttentionCache):
        arrays = {name: getattr(entry, name) for name in _ROWS_AND_HEADS[type(entry)]}
        axes = _ROWS_AND_HEADS[type(entry)]
        return type(entry)(**{name: None if a is None else place(a.shape, *axes[name]) for name, a in arrays.items()})

    runs = jax.tree.map(layer, cache.runs, is_leaf=lambda node: type(node) in _ROWS_AND_HEADS)
    return Cache(runs, place(cache.count.shape, -1, None), place(cache.segment.shape, -1, None))


def place_cache(mesh: Mesh | None, cache: Cache) -> Cache:
    """Constrain a cache inside a compiled function to `cache_shardings`. Without a mesh, do nothing."""
    return cache if mesh is None else jax.lax.with_sharding_constraint(cache, cache_shardings(mesh, cache))


def place_whole(mesh: Mesh | None, tree: Any) -> Any:
    """Keep arrays whole on every device inside a compiled function; without a mesh, do nothing."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def committed(tree: Any) -> Any:
    """Commit arrays to the devices that they are on. Arrays are not copied.

    `jax.jit` compiles again when an argument changes from uncommitted to committed. With committed parameters, all results are committed,
    so the first arguments must be committed too.
    """
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), tree)
