"""Copies of a prefilled row: pages of the layers that keep every token, and the full state of the other layers.

Full attention has one cache slot per token of a row and never overwrites a slot. Each piece of a prompt adds one page of these slots, and
rows with the same beginning share pages. The states of Mamba layers and the rings of windowed attention are copied completely.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from plamo2_jax.engine.shardings import committed, place_cache
from plamo2_jax.engine.step import empty_cache
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import AttentionCache, Cache, MambaCache


class Page(struct.PyTreeNode):
    """Keys and values of one piece of a prompt in all layers that keep every token."""

    layers: tuple[AttentionCache, ...]
    start: Int[Array, ""]
    """Cache slot of the first key."""


def _is_layer(node: Any) -> bool:
    return isinstance(node, AttentionCache | MambaCache)


def _is_paged(layer: Any, max_length: int) -> bool:
    return isinstance(layer, AttentionCache) and layer.positions.shape[1] == max_length


def state_of(cache: Cache, max_length: int) -> Cache:
    """Return the cache with None in place of each paged layer. Arrays are not copied."""
    return jax.tree.map(lambda layer: None if _is_paged(layer, max_length) else layer, cache, is_leaf=_is_layer)


@jax.jit
def copied(tree: Any) -> Any:
    """Copy the arrays of a tree."""
    return jax.tree.map(jnp.copy, tree)


def _paged_layers(cache: Cache, max_length: int) -> list[AttentionCache]:
    return [layer for layer in jax.tree.leaves(cache, is_leaf=_is_layer) if _is_paged(layer, max_length)]


@functools.partial(jax.jit, static_argnames=("max_length", "length"))
def take_page(cache: Cache, start: Int[Array, ""], *, max_length: int, length: int) -> Page:
    """Copy the keys and values of `length` slots beginning at `start`, or of the last `length` slots near the end of a row."""
    layers = _paged_layers(cache, max_length)
    return Page(
        tuple(
            jax.tree.map(
                lambda leaf, axis: jax.lax.dynamic_slice_in_dim(leaf, start, length, axis), layer, layer.axes()
            )
            for layer in layers
        ),
        start,
    )


@functools.partial(jax.jit, static_argnames="model")
def _copy(model: Plamo2, state: Cache, empty: Cache) -> Cache:
    cache = jax.tree.map(
        lambda kept, layer: layer if kept is None else jax.tree.map(jnp.copy, kept),
        state,
        empty,
        is_leaf=lambda node: node is None or _is_layer(node),
    )
    return place_cache(model.mesh, cache)


@functools.partial(jax.jit, static_argnames="max_length", donate_argnames="cache")
def _put_page(cache: Cache, page: Page, max_length: int) -> Cache:
    layers = iter(page.layers)

    def put(layer: Any) -> Any:
        if not _is_paged(layer, max_length):
            return layer
        return jax.tree.map(
            lambda old, new, axis: jax.lax.dynamic_update_slice_in_dim(old, new, page.start, axis),
            layer,
            next(layers),
            layer.axes(),
        )

    return jax.tree.map(put, cache, is_leaf=_is_layer)


def restore(model: Plamo2, state: Cache, pages: Sequence[Page], *, rows: int, max_length: int) -> Cache:
    """Rebuild a cache from a state and its pages. The arrays are copied.

    Args:
        model: the network.
        state: result of `state_of`.
        pages: one page per piece that was read, in order.
        rows: number of rows of the cache.
        max_length: number of tokens that a row of the cache can hold.
    """
    cache = _copy(model, state, committed(empty_cache(model, rows, max_length)))
    for page in pages if _paged_layers(cache, max_length) else ():
        cache = _put_page(cache, page, max_length)
    return cache


def byte_count(tree: Any) -> int:
    """Return the total size of the arrays of a tree, in bytes."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
