"""Segment ids: the one source of truth for documents and padding inside a row.

`segment_ids [b,t] i32`: 0 marks padding, any other value a document. Padding may lead a row, trail it, or stand between documents.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


def carried_segments(segment_ids: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """The segment whose state is alive at each position.

    Padding leaves a state as it is, so it carries the segment of the last token before it; leading padding carries that of the row's
    first token, since an initial state continues it. All zeros for a row of padding.
    """
    t = segment_ids.shape[1]
    real = segment_ids != 0
    last = lax.cummax(jnp.where(real, jnp.arange(t), -1), axis=1)
    first = jnp.argmax(real, axis=1, keepdims=True)
    return jnp.take_along_axis(segment_ids, jnp.maximum(last, first), axis=1)


def segment_ordinals(segment_ids: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """0 for the row's first segment, 1 for the next, ...: an id that returns after another one is a document of its own."""
    carried = carried_segments(segment_ids)
    changes = jnp.pad(carried[:, 1:] != carried[:, :-1], [(0, 0), (1, 0)])
    return jnp.cumsum(changes, axis=1, dtype=jnp.int32)


def first_segment(segment_ids: Int[Array, "b t"]) -> Int[Array, " b"]:
    """Segment of each row's first token that is not padding; 0 for a row of padding."""
    first = jnp.argmax(segment_ids != 0, axis=1, keepdims=True)
    return jnp.take_along_axis(segment_ids, first, axis=1)[:, 0]
