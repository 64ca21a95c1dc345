"""The selective scan of a row in shards: an exclusive scan over the maps that shards apply to a state.

A shard maps its entering state S to through · S + added. `added` is the final state of the shard from a zero state, and `through` is the
product of its decays; both respect segments. Such maps compose, so after log₂(shards) exchanges of one state per head, every shard knows
its entering state. No array with the length of a row is sent.

A shard then scans once from this state, which any kernel accepts as initial state. The alternative is to scan from zero and to add the
contribution of the entering state to y. It needs another product as large as the product for `added`, again in the backward pass, and
another pass over y, which would be rounded twice.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from plamo2_kernels.precision import product_precision
from plamo2_kernels.segments import carried_segments, first_segment, segment_ordinals
from plamo2_kernels.ssd import Implementation, ssd
from plamo2_kernels.ssd.decay import log_decay


def sharded_ssd(
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    *,
    axis_name: str,
    segment_ids: Int[Array, "b t"] | None = None,
    initial_state: Float[Array, "b h p n"] | None = None,
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
    interpret: Any = False,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"]]:
    """Compute `ssd` for the tokens of this shard. `initial_state` is the initial state of the row, the same in all shards.

    Returns:
        y of the shard, and the state after its last token (in the last shard, the final state of the row).
    """
    if lax.axis_size(axis_name) > 1:
        # x may vary over devices while the others do not. These sums make them vary too, as custom gradients require; the transpose of a
        # sum adds the devices.
        dt, A, B, C, D = (a + jnp.zeros_like(x, shape=(), dtype=a.dtype) for a in (dt, A, B, C, D))
        initial_state = entering_state(x, dt, A, B, segment_ids, initial_state, axis_name)
    return ssd(
        x,
        dt,
        A,
        B,
        C,
        D,
        segment_ids=segment_ids,
        initial_state=initial_state,
        chunk_size=chunk_size,
        implementation=implementation,
        interpret=interpret,
    )


def entering_state(
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    segment_ids: Int[Array, "b t"] | None,
    initial_state: Float[Array, "b h p n"] | None,
    axis_name: str,
) -> Float[Array, "b h p n"]:
    """Return the entering state of this shard's first segment: zero if the segment begins in this shard."""
    shards = lax.axis_size(axis_name)

    def from_before(v, hop):
        # Shards without a predecessor get zeros, which is the map to the zero state.
        return lax.ppermute(v, axis_name, [(i, i + hop) for i in range(shards - hop)])

    through, added = _summary(x, dt, A, B, segment_ids)
    if segment_ids is not None:
        goes_on = _first_segment_goes_on(segment_ids, axis_name)[:, None, None, None]
        through = jnp.where(goes_on, through, 0)
    # The first shift by one makes the scan exclusive: each shard holds the map of its predecessor, and the first shard the initial state.
    through, added = from_before((through, added), 1)
    if initial_state is not None:
        added = jnp.where(lax.axis_index(axis_name) == 0, initial_state.astype(added.dtype), added)
    covered, maps = 1, shards - (initial_state is None)
    while covered < maps:
        through_before, added_before = from_before((through, added), covered)
        through, added = through * through_before, through * added_before + added
        covered *= 2
    return added if segment_ids is None else jnp.where(goes_on, added, 0)


# Without the checkpoint, x times its weights, which is as large as x, would be stored for the backward pass.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _summary(x, dt, A, B, segment_ids):
    """Return `through` [b,h,1,1] and `added` [b,h,p,n] of the shard, at least float32."""
    b, _, h, p = x.shape
    g, n = B.shape[2:]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    dt, A = dt.astype(dtype), A.astype(dtype)
    if segment_ids is not None:
        dt = jnp.where((segment_ids != 0)[..., None], dt, 0)
    decays = lax.cumsum(log_decay(dt, A), axis=1, reverse=True)
    # The contribution of a token decays by the later steps. They are summed from the end, since a difference of sums would lose digits.
    weights = jnp.exp(jnp.pad(decays[:, 1:], [(0, 0), (0, 1), (0, 0)])) * dt
    through = jnp.exp(decays[:, 0])
    if segment_ids is not None:
        ordinals = segment_ordinals(segment_ids)
        weights = jnp.where((ordinals == ordinals[:, -1:])[..., None], weights, 0)
        through = jnp.where(ordinals[:, -1:] == 0, through, 0)
    surviving = (x * weights[..., None]).astype(x.dtype).reshape(b, -1, g, h // g, p)
    added = jnp.einsum(
        "btgup,btgn->bgupn",
        surviving,
        B.astype(x.dtype),
        precision=product_precision(x.dtype),
        preferred_element_type=dtype,
    )
    return through[..., None, None], added.reshape(b, h, p, n)


def _first_segment_goes_on(segment_ids: Int[Array, "b t"], axis_name: str) -> Bool[Array, " b"]:
    """Return whether the first token of the shard that is not padding continues the segment of the last such token before the shard.

    The result is also true if there is no earlier token, because the initial state continues the first token of the row, and for a shard of
    padding, because the state passes through it.
    """
    first, last = first_segment(segment_ids), carried_segments(segment_ids)[:, -1]
    lasts = lax.all_gather(last, axis_name)
    number = jnp.arange(lasts.shape[0])[:, None]
    nearest = jnp.max(jnp.where((number < lax.axis_index(axis_name)) & (lasts != 0), number, -1), axis=0)
    before = jnp.take_along_axis(lasts, jnp.maximum(nearest, 0)[None], axis=0)[0]
    return (first == before) | (nearest < 0) | (first == 0)
