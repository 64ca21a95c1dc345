"""The backward kernel of the scan on TPU. One grid step computes one chunk of a block of heads, the last chunk first.

`pallas_tpu` has the formulas. Pairs have the axis of the earlier token first, [s,q], so that no decay matrix must be transposed. Each head
passes through three stages: the products with dy and x, the decays, and the products with the decays. Consecutive heads are one stage
apart, so that the matrix units work on one head while the vector units work on another.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from plamo2_kernels.ssd.decay import is_clamped
from plamo2_kernels.ssd.pallas_tpu_math import NN, NT, TN, decay, dot, keep, log_decays, make_masks, masked_sum


def backward_kernel(*refs, unroll: int, segmented: bool) -> None:
    """Compute one grid step; the grid is (batch, block of heads, chunk from last to first). Refs, in order (without axes of length 1):

    In: x, dy [j,q,p], dt [j,q], A [j,1], D [j,p], B [q,n] and [n,q], C [n,q], segments [2,q] (if segmented), entering states
    [j,n,p], gradient of the final state [j,n,p].
    Out: dx [j,q,p], ddt [j,q], dA and dD [j,q] (sums over chunks; XLA sums the tokens), dB, dC [n,q] (of this block's heads), gradient of
    the state [j,n,p] (the accumulator; after the last grid step, the gradient of the initial state).
    Scratch: scalars per head and token [j,q], then matrices, as named below.
    """
    refs = list(refs)
    x_ref, dy_ref, dt_ref, A_ref, D_ref, B_ref, Bt_ref, Ct_ref = (refs.pop(0) for _ in range(8))
    segments_ref = refs.pop(0) if segmented else None
    entering_ref, d_final_ref, dx_ref, ddt_ref, dA_ref, dD_ref, dB_ref, dC_ref, d_state_ref = (
        refs.pop(0) for _ in range(9)
    )
    cum_ref, from_start_ref, to_end_ref, through_ref, d_cum_ref = refs[:5]
    from_x_ref, from_state_ref, column_ref, d_through_ref = refs[5:9]
    scores_ref, strict_ref, eye_ref, d_scores_ref, pair_ref, state_ref, within_ref = refs[9:]
    heads, q, p = x_ref.shape[1:]
    n, dtype = Bt_ref.shape[2], x_ref.dtype

    @pl.when(pl.program_id(2) == 0)
    def _():
        d_state_ref[...] = d_final_ref[...]
        dA_ref[...] = jnp.zeros(dA_ref.shape, jnp.float32)
        dD_ref[...] = jnp.zeros(dD_ref.shape, jnp.float32)

    # Values shared by the heads.
    masks = make_masks(segments_ref[0] if segmented else None)
    earlier, later = lax.broadcasted_iota(jnp.int32, (q, q), 0), lax.broadcasted_iota(jnp.int32, (q, q), 1)
    pairs = earlier <= later if masks.same is None else (earlier <= later) & masks.same
    scores = dot(B_ref[0, 0], Ct_ref[0, 0], NN)
    scores_ref[...] = jnp.where(pairs, scores, 0.0)
    # The decay of a token to itself is 1. It is excluded, because it would cancel between the row and column sums only up to rounding.
    strict_ref[...] = jnp.where(pairs & (earlier != later), scores, 0.0)
    eye_ref[...] = jnp.where(earlier == later, 1.0, 0.0)
    diagonal = jnp.sum(jnp.where(earlier == later, scores, 0.0), axis=0, keepdims=True)
    d_scores_ref[...] = jnp.zeros(d_scores_ref.shape, jnp.float32)
    dB_ref[0, 0] = jnp.zeros((n, q), jnp.float32)
    dC_ref[0, 0] = jnp.zeros((n, q), jnp.float32)

    # Scalars per head and token.
    dt, ones = dt_ref[0, 0], pairs.astype(jnp.bfloat16)
    cum = masked_sum(log_decays(dt, A_ref[0]), ones, NN)
    from_start, to_end = keep(masks.enters, jnp.exp2(cum)), keep(masks.leaves, decay(cum[:, q - 1 :] - cum))
    through = from_start[:, q - 1 :]
    cum_ref[...], from_start_ref[...], to_end_ref[...] = cum, from_start, to_end
    through_ref[...] = jnp.broadcast_to(through, (heads, p))

    def some_heads(i, carry):
        rows = pl.ds(pl.multiple_of(i * unroll, unroll), unroll)
        cum, dt = cum_ref[rows, :], dt_ref[0, 0, rows, :]
        from_start, to_end = from_start_ref[rows, :], to_end_ref[rows, :]
        cum_columns, dt_columns = cum.T, dt.T
        lane = lax.broadcasted_iota(jnp.int32, (q, unroll), 1)

        def project(k):
            head, slot = i * unroll + k, k % 2
            x, dy = x_ref[0, head], dy_ref[0, head]
            pair_ref[slot] = dot(x, dy, NT)
            state_ref[slot, :n] = dot(entering_ref[0, 0, head].astype(dtype), dy, NT)
            state_ref[slot, n:] = dot(d_state_ref[0, head].astype(dtype), x, NT)

        def weigh(k, sums):
            """Compute the sums to scalars per token and the factors for the next stage. Return `sums` [q,unroll] with a new column."""
            head, slot = pl.ds(i * unroll + k, 1), k % 2
            only = slice(k, k + 1)
            reading = Ct_ref[0, 0].astype(jnp.float32) * from_start[only]
            writing = Bt_ref[0, 0].astype(jnp.float32) * to_end[only]
            decays = decay(cum[only] - jnp.broadcast_to(cum_columns[:, only], (q, q)))
            within_ref[slot] = (decays * scores_ref[...]).astype(dtype)
            pair = pair_ref[slot]
            own = jnp.sum(pair * eye_ref[...], axis=0, keepdims=True)
            pair = pair * decays
            stepped = pair * jnp.broadcast_to(dt_columns[:, only], (q, q))
            d_scores_ref[...] += stepped
            strict = strict_ref[...]
            read = state_ref[slot, :n]
            written = state_ref[slot, n:]
            dC_ref[0, 0] += read * from_start[only]
            dB_ref[0, 0] += written * (to_end[only] * dt[only])
            d_cum_ref[head, :] = jnp.sum(stepped * strict, axis=0, keepdims=True) + jnp.sum(
                read * reading, axis=0, keepdims=True
            )
            from_state_ref[head, :] = jnp.sum(written * writing, axis=0, keepdims=True)
            from_x_ref[head, :] = own * diagonal
            dD_ref[0, 0, head, :] += own
            return jnp.where(lane == k, jnp.sum(pair * strict, axis=1, keepdims=True), sums)

        def accumulate(k):
            head, slot = i * unroll + k, k % 2
            only, one = slice(k, k + 1), pl.ds(head, 1)
            dy, d_state = dy_ref[0, head], d_state_ref[0, head]
            reading = (Ct_ref[0, 0].astype(jnp.float32) * from_start[only]).astype(dtype)
            writing = (Bt_ref[0, 0].astype(jnp.float32) * to_end[only]).astype(dtype)
            dx = dot(within_ref[slot], dy, NN) + dot(writing, d_state.astype(dtype), TN)
            dx = dx * jnp.broadcast_to(dt_columns[:, only], (q, p)) + dy.astype(jnp.float32) * D_ref[0, one, :]
            dx_ref[0, head] = dx.astype(dtype)
            d_through_ref[one, :] = jnp.sum(d_state * entering_ref[0, 0, head], axis=0, keepdims=True)
            d_state_ref[0, head] = d_state * through_ref[one, :] + dot(reading, dy, NN)

        sums = jnp.zeros((q, unroll), jnp.float32)
        for k in range(unroll + 2):
            if k < unroll:
                project(k)
            if 1 <= k <= unroll:
                sums = weigh(k - 1, sums)
            if k >= 2:
                accumulate(k - 2)
        column_ref[rows, :] = sums.T
        return carry

    lax.fori_loop(0, heads // unroll, some_heads, 0)

    from_others, from_state = column_ref[...], from_state_ref[...]
    d_last = jnp.sum(d_through_ref[...], axis=1, keepdims=True) * through + jnp.sum(
        from_state * dt, axis=1, keepdims=True
    )
    at_end = lax.broadcasted_iota(jnp.int32, (heads, q), 1) == q - 1
    d_cum = d_cum_ref[...] - (from_others + from_state) * dt + jnp.where(at_end, d_last, 0.0)
    da = jnp.where(is_clamped(dt, A_ref[0]), 0.0, masked_sum(d_cum, ones, NT))
    ddt_ref[0, 0] = da * A_ref[0] + from_x_ref[...] + from_others + from_state
    dA_ref[0, 0] += da * dt
    d_scores = jnp.where(pairs, d_scores_ref[...], 0.0).astype(dtype)
    dC_ref[0, 0] += dot(Bt_ref[0, 0], d_scores, NN)
    dB_ref[0, 0] += dot(Ct_ref[0, 0], d_scores, NT)
