"""The forward kernel of the scan on TPU. One grid step computes one chunk of a block of heads, by the formulas in `pallas_tpu`."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from plamo2_kernels.ssd.pallas_tpu_math import NN, NT, decay, dot, keep, log_decays, make_masks, masked_sum


def forward_kernel(*refs, unroll: int, segmented: bool, save: bool) -> None:
    """Compute one grid step; the grid is (batch, block of heads, chunk). Refs, in order (without leading axes of length 1):

    In: x [j,q,p], dt [j,q], A [j,1], D [j,p], B [n,q], C [q,n], segments [2,q] (if segmented), initial state [j,n,p].
    Out: y [j,q,p], state [j,n,p] (the accumulator, in VMEM until the last chunk is done), entering states [j,n,p] (if save).
    Scratch: cum, weight [j,q], through [j,p], scores [q,q], C of the tokens that see the entering state [q,n].
    """
    refs = list(refs)
    x_ref, dt_ref, A_ref, D_ref, B_ref, C_ref = (refs.pop(0) for _ in range(6))
    segments_ref = refs.pop(0) if segmented else None
    initial_ref, y_ref, state_ref = (refs.pop(0) for _ in range(3))
    entering_ref = refs.pop(0) if save else None
    cum_ref, weight_ref, through_ref, scores_ref, reading_ref = refs
    heads, q, p = x_ref.shape[1:]
    n, dtype = B_ref.shape[2], x_ref.dtype

    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = initial_ref[...]

    # Values shared by the heads.
    masks = make_masks(segments_ref[0] if segmented else None)
    later, earlier = lax.broadcasted_iota(jnp.int32, (q, q), 0), lax.broadcasted_iota(jnp.int32, (q, q), 1)
    pairs = earlier <= later if masks.same is None else (earlier <= later) & masks.same
    C = C_ref[0, 0]
    scores_ref[...] = jnp.where(pairs, dot(C, B_ref[0, 0], NN), 0.0)
    enters = None if masks.enters_column is None else masks.enters_column[:, :n]
    reading_ref[...] = keep(enters, C.astype(jnp.float32))

    # Scalars per head and token.
    dt = dt_ref[0, 0]
    cum = masked_sum(log_decays(dt, A_ref[0]), pairs.astype(jnp.bfloat16), NT)
    last = cum[:, q - 1 :]
    through = last if masks.enters is None else jnp.where(masks.enters[:, q - 1 :], last, -jnp.inf)
    cum_ref[...] = cum
    weight_ref[...] = keep(masks.leaves, decay(last - cum) * dt)
    through_ref[...] = jnp.broadcast_to(jnp.exp2(through), (heads, p))

    def some_heads(i, carry):
        rows = pl.ds(pl.multiple_of(i * unroll, unroll), unroll)
        cum, weight, dt = cum_ref[rows, :], weight_ref[rows, :], dt_ref[0, 0, rows, :]
        columns = cum.T
        for k in range(unroll):
            head = i * unroll + k
            x, state = x_ref[0, head], state_ref[0, head]
            if save:
                entering_ref[0, 0, head] = state
            column = jnp.broadcast_to(columns[:, k : k + 1], (q, q))
            within = (decay(column - cum[k : k + 1]) * scores_ref[...] * dt[k : k + 1]).astype(dtype)
            reading = (reading_ref[...] * jnp.exp2(column[:, :n])).astype(dtype)
            writing = (B_ref[0, 0].astype(jnp.float32) * weight[k : k + 1]).astype(dtype)
            y = dot(within, x, NN) + dot(reading, state.astype(dtype), NN)
            state_ref[0, head] = state * through_ref[pl.ds(head, 1), :] + dot(writing, x, NN)
            y_ref[0, head] = (y + x.astype(jnp.float32) * D_ref[0, pl.ds(head, 1), :]).astype(dtype)
        return carry

    lax.fori_loop(0, heads // unroll, some_heads, 0)
