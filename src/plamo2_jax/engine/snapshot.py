"""Copies of a prefilled row: pages of the layers that keep every token, and the whole state of the others.

A layer whose keys are as many as a row's tokens never overwrites one, so each piece of a prompt adds a page to it, and rows that begin
alike share pages. State-space layers and rings of a window are copied whole.
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

from plamo2_jax.engine.shardings import place_cache
from plamo2_jax.engine.step import empty_cache
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import SLOT_AXES, AttentionCache, Cache, MambaCache


class Page(struct.PyTreeNode):
    """Keys and values of one piece of a prompt in all layers that keep every token."""

    layers: tuple[AttentionCache, ...]
    start: Int[Array, ""]
    """Slot of the first key."""


def _is_layer(node: Any) -> bool:
    return isinstance(node, AttentionCache | MambaCache)


def _is_paged(layer: Any, max_length: int) -> bool:
    return isinstance(layer, AttentionCache) and layer.positions.shape[1] == max_length


def state_of(cache: Cache, max_length: int) -> Cache:
    """Return a cache without its paged layers, whose places hold None. Nothing is copied."""
    return jax.tree.map(lambda layer: None if _is_paged(layer, max_length) else layer, cache, is_leaf=_is_layer)


@jax.jit
def copied(tree: Any) -> Any:
    """Copy the arrays of a tree."""
    return jax.tree.map(jnp.copy, tree)


def _paged_layers(cache: Cache, max_length: int) -> list[AttentionCache]:
    return [layer for layer in jax.tree.leaves(cache, is_leaf=_is_layer) if _is_paged(layer, max_length)]


@functools.partial(jax.jit, static_argnames=("max_length", "length"))
def take_page(cache: Cache, start: Int[Array, ""], *, max_length: int, length: int) -> Page:
    """Copy the keys and values of `length` slots from `start` on; near the end of a row, of its last `length` slots."""
    layers = _paged_layers(cache, max_length)
    return Page(
        tuple(
            jax.tree.map(lambda leaf, axis: jax.lax.dynamic_slice_in_dim(leaf, start, length, axis), layer, SLOT_AXES)
            for layer in layers
        ),
        start,
    )


@functools.partial(jax.jit, static_argnames=("model", "max_length"))
def _copy(model: Plamo2, state: Cache, empty: Cache, max_length: int) -> Cache:
    del max_length
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
            SLOT_AXES,
        )

    return jax.tree.map(put, cache, is_leaf=_is_layer)


def restore(model: Plamo2, state: Cache, pages: Sequence[Page], *, rows: int, max_length: int) -> Cache:
    """Return the cache that a state and its pages were taken from, in memory of its own.

    Args:
        model: the network.
        state: result of `state_of`.
        pages: one for each piece that was read, in order.
        rows: rows of the cache.
        max_length: tokens of a row of the cache.
    """
    cache = _copy(model, state, empty_cache(model, rows, max_length), max_length)
    for page in pages if _paged_layers(cache, max_length) else ():
        cache = _put_page(cache, page, max_length)
    return cache


def byte_count(tree: Any) -> int:
    """Return the bytes of the arrays of a tree."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
