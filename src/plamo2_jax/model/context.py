"""What every layer must know of the tokens it gets."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from plamo2_jax.model.cache import Cache
from plamo2_kernels.segments import carried_segments, first_segment


class Context(struct.PyTreeNode):
    """Segments and positions of a piece of a batch; one for all layers."""

    segment_ids: Int[Array, "b t"]
    positions: Int[Array, "b t"]
    count: Int[Array, " b"]
    """Tokens of each row before this piece."""
    continues: Bool[Array, " b"]
    """Whether the piece begins in the segment where the last one ended: if not, states start from zero."""


def make_context(
    tokens: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"] | None,
    positions: Int[Array, "b t"] | None,
    cache: Cache | None,
) -> Context:
    """Fill in what is left out: one document a row, positions counting the row's tokens from the cache's count on."""
    b = tokens.shape[0]
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    count = jnp.zeros((b,), jnp.int32) if cache is None else cache.count
    if positions is None:
        positions = count[:, None] + jnp.maximum(jnp.cumsum(segment_ids != 0, axis=1) - 1, 0)
    continues = jnp.ones((b,), bool) if cache is None else first_segment(segment_ids) == cache.segment
    return Context(segment_ids, positions, count, continues | (first_segment(segment_ids) == 0))


def advance(cache: Cache, runs: tuple, context: Context) -> Cache:
    """The cache after the piece, with the layers' new states."""
    seen = jnp.any(context.segment_ids != 0, axis=1)
    last = carried_segments(context.segment_ids)[:, -1]
    return Cache(
        runs,
        cache.count + jnp.sum(context.segment_ids != 0, axis=1, dtype=jnp.int32),
        jnp.where(seen, last, cache.segment),
    )
