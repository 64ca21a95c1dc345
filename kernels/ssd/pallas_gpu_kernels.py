"""The bodies of the three kernels of the scan on GPUs. `pallas_gpu.py` has the formulas, the grids, the names and the BlockSpecs.

A block loops over its heads and, inside, over slices of a head's features. Values of shape q×q or [q,n] stay in registers through both
loops; wide values (x, y, states) are loaded one slice at a time.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl


def carry_kernel(u_ref, v_ref, weight_ref, through_ref, start_ref, before_ref, end_ref, *, chunk, from_the_end):
    """Refs: u [t, rows], v [t, n], weight [t], through [c], start and end [rows, n], before [c, rows, n]."""
    chunks = through_ref.shape[0]

    def step(i, state):
        c = chunks - 1 - i if from_the_end else i
        before_ref[c] = state
        tokens = pl.ds(c * chunk, chunk)
        weighted = (u_ref[tokens, :] * weight_ref[tokens][:, None]).astype(u_ref.dtype)
        return through_ref[c] * state + _dot(weighted, v_ref[tokens, :], (0, 0))

    end_ref[...] = lax.fori_loop(0, chunks, step, start_ref[...])


def _pairs(ordinals):
    """Return whether token j (columns) is at or before token i (rows) and in the same segment."""
    token = jnp.arange(ordinals.shape[0])
    return (token[:, None] >= token[None, :]) & (ordinals[:, None] == ordinals[None, :])


def _decay(cum):
    """Return exp(cum_i - cum_j) for pairs in one segment, at most 1 since A is negative, and any value up to 1 for the other pairs.

    The scores of the other pairs are 0. A mask here would occupy up to 60 registers per thread during the loop over heads.
    """
    return jnp.exp(jnp.minimum(cum[:, None] - cum[None, :], 0))


def outputs_kernel(
    x_ref, B_ref, C_ref, D_ref, dt_ref, cum_ref, from_start_ref, ordinals_ref, entering_ref, y_ref, *, rows
):
    """Refs: x and y [q, heads, p], B and C [q, n], D [heads], dt, cum, from_start [heads, q], ordinals [q], entering [heads, p, n]."""
    C = C_ref[...]
    scores = jnp.where(_pairs(ordinals_ref[...]), _dot(C, B_ref[...], (1, 1)), 0)

    def head(i, carry):
        weights = (scores * _decay(cum_ref[i, :]) * dt_ref[i, :][None, :]).astype(C.dtype)
        reads = (C * from_start_ref[i, :][:, None]).astype(C.dtype)

        def some_channels(k, carry):
            channels = pl.ds(k * rows, rows)
            x = x_ref[:, i, channels]
            y = _dot(weights, x, (1, 0)) + _dot(reads, entering_ref[i, channels, :].astype(C.dtype), (1, 1))
            y_ref[:, i, channels] = (y + D_ref[i] * x).astype(y_ref.dtype)
            return carry

        return lax.fori_loop(0, x_ref.shape[2] // rows, some_channels, carry)

    lax.fori_loop(0, x_ref.shape[1], head, 0)


def gradients_kernel(*refs, rows):
    """Refs, in order:

    In: x and dy [q, heads, p], B and C [q, n], D [heads], dt, cum, from_start and survives [heads, q], ordinals [q], the entering state and
    the gradient of the leaving state [heads, p, n].
    Out: dx, dB and dC like x, B and C; the gradients of D (per token), dt, cum, from_start and survives [heads, q]; through [heads].
    """
    x_ref, dy_ref, B_ref, C_ref, D_ref, dt_ref, cum_ref, from_start_ref, survives_ref, ordinals_ref = refs[:10]
    entering_ref, leaving_ref, dx_ref, dB_ref, dC_ref = refs[10:15]
    d_skip_ref, d_dt_ref, d_cum_ref, d_from_start_ref, d_survives_ref, d_through_ref = refs[15:]
    dtype = x_ref.dtype
    B, C = B_ref[...], C_ref[...]
    pairs = _pairs(ordinals_ref[...])
    scores = jnp.where(pairs, _dot(C, B, (1, 1)), 0)
    token = jnp.arange(dt_ref.shape[1])
    own_score = jnp.sum(B.astype(jnp.float32) * C.astype(jnp.float32), axis=1)

    def head(i, sums):
        dt, cum, from_start, survives = (ref[i, :] for ref in (dt_ref, cum_ref, from_start_ref, survives_ref))
        decay = _decay(cum)
        weights = (scores * decay * dt[None, :]).astype(dtype)

        def some_channels(k, sums):
            dB, dC, d_weights, own, d_from_start, d_survives, d_through = sums
            channels = pl.ds(k * rows, rows)
            x, dy = x_ref[:, i, channels], dy_ref[:, i, channels]
            entering, leaving = entering_ref[i, channels, :], leaving_ref[i, channels, :]
            d_through += jnp.sum(entering * leaving)
            entering, leaving = entering.astype(dtype), leaving.astype(dtype)

            d_weights += _dot(dy, x, (1, 1))
            own += jnp.sum(dy.astype(jnp.float32) * x.astype(jnp.float32), axis=1)
            # Weighted before the product, so that the product can be added to dB and dC in registers.
            dC += _dot((dy * from_start[:, None]).astype(dtype), entering, (1, 0))
            dB += _dot((x * survives[:, None]).astype(dtype), leaving, (1, 0))
            d_from_start += jnp.sum(_dot(C, entering, (1, 1)) * dy, axis=1)
            d_written = _dot(B, leaving, (1, 1))
            d_survives += jnp.sum(d_written * x, axis=1)
            dx = _dot(weights, dy, (0, 0)) + d_written * survives[:, None] + D_ref[i] * dy
            dx_ref[:, i, channels] = dx.astype(dtype)
            return dB, dC, d_weights, own, d_from_start, d_survives, d_through

        dB, dC, d_scores = sums
        nothing = jnp.zeros_like(dt)
        start = (dB, dC, jnp.zeros_like(scores), nothing, nothing, nothing, jnp.float32(0))
        sums = lax.fori_loop(0, x_ref.shape[2] // rows, some_channels, start)
        dB, dC, d_weights, own, d_from_start_ref[i, :], d_survives_ref[i, :], d_through_ref[i] = sums

        # The pairs of a token with itself are summed separately. Their decay is 1 for any cum, and among the other pairs they would cancel
        # in d_cum only up to rounding.
        d_weights *= decay
        d_pairs = jnp.where(token[:, None] == token[None, :], 0, d_weights * scores)
        to_later = jnp.sum(d_pairs, axis=0)
        d_dt_ref[i, :] = to_later + own * own_score
        d_cum_ref[i, :] = jnp.sum(d_pairs * dt[None, :], axis=1) - to_later * dt
        d_skip_ref[i, :] = own
        return dB, dC, d_scores + d_weights * dt[None, :]

    zeros = jnp.zeros(B.shape, jnp.float32)
    dB, dC, d_scores = lax.fori_loop(0, x_ref.shape[1], head, (zeros, zeros, jnp.zeros_like(scores)))
    d_scores = jnp.where(pairs, d_scores, 0).astype(dtype)
    dB_ref[...] = dB + _dot(d_scores, C, (0, 0))
    dC_ref[...] = dC + _dot(d_scores, B, (1, 0))


def _dot(a, b, contract):
    """Return the product over axis contract[0] of a and contract[1] of b in float32, in full precision for float32 (not TF32)."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (contract[:1], contract[1:]), ((), ())
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
