"""Segment ids, the only source for documents and padding in a row.

`segment_ids [b,t] i32`: 0 is padding, any other value is a document. Padding may be at the start of a row, at its end, or between
documents.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


def carried_segments(segment_ids: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Return the segment of the state at each position.

    Padding does not change the state, so it has the segment of the last token before it. Padding at the start of a row has the segment of
    the first token, because an initial state continues that segment. A row of padding gives zeros.
    """
    t = segment_ids.shape[1]
    real = segment_ids != 0
    last = lax.cummax(jnp.where(real, jnp.arange(t), -1), axis=1)
    first = jnp.argmax(real, axis=1, keepdims=True)
    return jnp.take_along_axis(segment_ids, jnp.maximum(last, first), axis=1)


def segment_ordinals(segment_ids: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Return 0 for the first segment of a row, 1 for the next, and so on. An id that returns after another id is a new document."""
    carried = carried_segments(segment_ids)
    changes = jnp.pad(carried[:, 1:] != carried[:, :-1], [(0, 0), (1, 0)])
    return jnp.cumsum(changes, axis=1, dtype=jnp.int32)


def first_segment(segment_ids: Int[Array, "b t"]) -> Int[Array, " b"]:
    """Return the segment of each row's first token that is not padding; 0 for a row of padding."""
    first = jnp.argmax(segment_ids != 0, axis=1, keepdims=True)
    return jnp.take_along_axis(segment_ids, first, axis=1)[:, 0]
