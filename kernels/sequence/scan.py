"""The selective scan of a row in shards: an exclusive scan over what each shard does to a state.

To the state S that enters it, a shard does S ← through · S + added: `added` is its last state had it begun with zero, `through` the
product of its decays, both cut by segments. Such maps compose, so log₂(shards) exchanges of one state a head give every shard the state
that enters it, and nothing the length of a row travels.

A shard then scans once, from that state. The other way, to scan from zero and add what the entering state contributes to y, costs a
product of the same size as the one that makes `added` here, but one more to differentiate it, and one more pass over y, which would be
rounded twice. Here the state passes into the scan as any initial state does, through whichever kernel computes it.
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
    """`ssd` of this shard's tokens; `initial_state` is that of the row, the same in all its shards.

    Returns:
        y of the shard, and the state after its last token: the row's final state in the last shard.
    """
    if lax.axis_size(axis_name) > 1:
        # x may vary over devices where the others do not. The sums let them vary too, as gradients written by hand will; the transpose of
        # a sum adds up the devices.
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
    """The state with which this shard's first segment begins: zero if that segment begins here."""
    shards = lax.axis_size(axis_name)

    def from_before(v, hop):
        # Shards with none before them get zeros: a map to the zero state, after which nothing earlier matters.
        return lax.ppermute(v, axis_name, [(i, i + hop) for i in range(shards - hop)])

    through, added = _summary(x, dt, A, B, segment_ids)
    if segment_ids is not None:
        goes_on = _first_segment_goes_on(segment_ids, axis_name)[:, None, None, None]
        through = jnp.where(goes_on, through, 0)
    # First by one, which makes the scan exclusive: each shard holds the map of the one before it, and the first one the initial state.
    through, added = from_before((through, added), 1)
    if initial_state is not None:
        added = jnp.where(lax.axis_index(axis_name) == 0, initial_state.astype(added.dtype), added)
    covered, maps = 1, shards - (initial_state is None)
    while covered < maps:
        through_before, added_before = from_before((through, added), covered)
        through, added = through * through_before, through * added_before + added
        covered *= 2
    return added if segment_ids is None else jnp.where(goes_on, added, 0)


# Without the checkpoint, x times its weights would be kept for the backward pass: as much as x.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _summary(x, dt, A, B, segment_ids):
    """`through` [b,h,1,1] and `added` [b,h,p,n] of the shard, float32 at least."""
    b, _, h, p = x.shape
    g, n = B.shape[2:]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    dt, A = dt.astype(dtype), A.astype(dtype)
    if segment_ids is not None:
        dt = jnp.where((segment_ids != 0)[..., None], dt, 0)
    decays = lax.cumsum(log_decay(dt, A), axis=1, reverse=True)
    # A token's contribution decays by the steps after its own. Summed from the end: as a difference of sums it would lose their digits.
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
    """Whether the shard's first token that is not padding is of the segment of the last such token before the shard.

    True also if there is none before it, as an initial state continues the row's first token, and for a shard of padding, which hands
    on the state that it gets.
    """
    first, last = first_segment(segment_ids), carried_segments(segment_ids)[:, -1]
    lasts = lax.all_gather(last, axis_name)
    number = jnp.arange(lasts.shape[0])[:, None]
    nearest = jnp.max(jnp.where((number < lax.axis_index(axis_name)) & (lasts != 0), number, -1), axis=0)
    before = jnp.take_along_axis(lasts, jnp.maximum(nearest, 0)[None], axis=0)[0]
    return (first == before) | (nearest < 0) | (first == 0)
