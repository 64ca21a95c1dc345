"""Where the arrays of decoding lie on a mesh: rows over data × fsdp, heads over tensor."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.model.axes import ROWS, TENSOR
from plamo2_jax.model.cache import AttentionCache, Cache, MambaCache

# Where rows and heads are among the axes of a cache's arrays, counted from the end: a stacked cache has one more in front.
_ROWS_AND_HEADS = {
    MambaCache: {"conv": (-4, -2), "ssm": (-4, -3)},
    AttentionCache: {"k": (-4, -3), "v": (-4, -3), "positions": (-2, None), "segment_ids": (-2, None)},
}


def cache_shardings(mesh: Mesh, cache: Cache) -> Cache:
    """The tree of NamedSharding of a cache; an axis that the mesh does not divide is whole on every device."""

    def place(shape: tuple[int, ...], rows: int, heads: int | None) -> NamedSharding:
        spec: list[Any] = [None] * len(shape)
        for axis, over in ((rows, ROWS), (heads, (TENSOR,))):
            if axis is not None and shape[axis] % math.prod(mesh.shape[name] for name in over) == 0:
                spec[axis] = over
        return NamedSharding(mesh, PartitionSpec(*spec))

    def layer(entry: MambaCache | AttentionCache):
        where = _ROWS_AND_HEADS[type(entry)]
        return type(entry)(**{name: place(getattr(entry, name).shape, *axes) for name, axes in where.items()})

    runs = jax.tree.map(layer, cache.runs, is_leaf=lambda node: type(node) in _ROWS_AND_HEADS)
    return Cache(runs, place(cache.count.shape, -1, None), place(cache.segment.shape, -1, None))


def place_cache(mesh: Mesh | None, cache: Cache) -> Cache:
    """Keep a cache inside a compiled function where `cache_shardings` puts it; without a mesh, do nothing."""
    return cache if mesh is None else jax.lax.with_sharding_constraint(cache, cache_shardings(mesh, cache))


def place_whole(mesh: Mesh | None, tree: Any) -> Any:
    """Keep arrays whole on every device inside a compiled function; without a mesh, do nothing."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
