"""The selective scan in chunks, as batched matrix products for XLA (state-space duality, arXiv:2405.21060, section 6).

With a = dt A, cum its running sum inside a chunk (and segment) and S_in the state that enters the chunk,

    y_i    = Σ_{j≤i} exp(cum_i - cum_j) (C_i·B_j) dt_j x_j  +  exp(cum_i) S_in C_i  +  D x_i
    S_out  = Σ_j exp(cum_last - cum_j) dt_j x_j ⊗ B_j       +  exp(cum_last) S_in

Pairs (i, j), and pairs of a state and a token, of different segments are masked. C·Bᵀ is computed once per group and shared by its heads.
Residuals of the backward pass are the inputs and the entering states of the chunks. The matrices [q,q] per head are computed again.

The formulas work on any number of chunks at once, and `_forward` and `_backward` apply them in one of two ways. Matrix units are fastest
with all chunks in one product and a loop only over the short recurrence of chunk states. A CPU is fastest with one chunk after the other,
because the data of a chunk then stays in its caches, while whole intermediate arrays would be written to memory and read again a dozen
times. The choice depends on the platform that the program is lowered for.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.padding import pad_tokens
from plamo2_kernels.precision import product_precision
from plamo2_kernels.ssd.decay import is_clamped, log_decay, masked_exp


def ssd_xla(
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    ordinals: Int[Array, "b t"] | None,
    initial_state: Float[Array, "b h p n"],
    chunk_size: int,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"]]:
    """Chunked scan, with log-decays, states and sums in the dtype of `initial_state`.

    Args:
        x, dt, A, B, C, D, initial_state: As for `api.ssd`; dt must be 0 at padding.
        ordinals: `segments.segment_ordinals` of the row, or None for one document per row.
        chunk_size: Tokens per chunk. Results do not depend on it beyond rounding.
    """
    b, t, h, p = x.shape
    g, n = B.shape[2:]
    q = min(chunk_size, t)
    pad = -t % q

    def chunks(v, *shape, mode="constant"):
        return pad_tokens(v, 0, pad, mode).reshape(b, -1, q, *shape)

    segments = before = None
    if ordinals is not None:
        segments = chunks(ordinals, mode="edge")
        before = jnp.concatenate([segments[:, :1, 0], segments[:, :-1, -1]], axis=1)
    # u is the axis of the heads of a group: h = g · u. Padding at the end has dt = 0 and does not change the state.
    u = h // g
    inputs = _Chunks(chunks(x, g, u, p), chunks(dt, g, u), chunks(B, g, n), chunks(C, g, n), segments, before)
    state = jnp.moveaxis(initial_state.reshape(b, g, u, p, n), -1, 2)
    y, state = _scan_chunks(inputs, A.reshape(g, u), D.reshape(g, u), state)
    return y.reshape(b, -1, h, p)[:, :t], jnp.moveaxis(state, 2, -1).reshape(b, h, p, n)


class _Chunks(NamedTuple):
    """Inputs per token, in chunks. States are [b,g,n,u,p]: the features of all heads of a group are adjacent, as one wide operand."""

    x: Float[Array, "b c q g u p"]
    dt: Float[Array, "b c q g u"]
    B: Float[Array, "b c q g n"]
    C: Float[Array, "b c q g n"]
    segments: Int[Array, "b c q"] | None
    before: Int[Array, "b c"] | None
    """Segment of the token before the chunk."""


class _Terms(NamedTuple):
    """Terms that depend only on dt, A and the segments."""

    sums: Float[Array, "b c q q"]
    """1 if the second token is at or before the first one and in the same segment, else 0."""
    decay: Float[Array, "b c g u q q"]
    """exp(cum_i - cum_j) on those pairs."""
    from_start: Float[Array, "b c g u q"]
    """exp(cum) for tokens that see the state entering their chunk, else 0."""
    to_end: Float[Array, "b c g u q"]
    """exp(cum_last - cum) for tokens whose contribution survives to the chunk's end, else 0."""
    through: Float[Array, "b c g 1 u 1"]
    """Factor of the entering state in the state at the end of the chunk."""


def _terms(dt, A, segments, before):
    """Compute the terms from dt [b,c,g,u,q]."""
    q = dt.shape[-1]
    pairs = jnp.tril(jnp.ones((q, q), bool))[None, None]
    enters = leaves = jnp.ones((1, 1, q), bool)
    if segments is not None:
        pairs &= segments[..., :, None] == segments[..., None, :]
        enters = segments == before[..., None]
        leaves = segments == segments[..., -1:]
    # The running sum restarts at each segment, as a product with the mask. A difference of sums across a boundary would leave rounding
    # errors of the other document in the gradient of dt.
    sums = jnp.broadcast_to(pairs, (*dt.shape[:2], q, q)).astype(dt.dtype)
    cum = jnp.einsum("bcij,bcguj->bcgui", sums, log_decay(dt, A[..., None]), precision=lax.Precision.HIGHEST)

    from_start = masked_exp(enters[:, :, None, None], cum)
    return _Terms(
        sums,
        masked_exp(pairs[:, :, None, None], cum[..., :, None] - cum[..., None, :]),
        from_start,
        masked_exp(leaves[:, :, None, None], cum[..., -1:] - cum),
        from_start[..., -1][:, :, :, None, :, None],
    )


def _by_head(v):
    """Transpose [b,c,q,g,u,...] to [b,c,g,u,q,...]."""
    return jnp.moveaxis(v, 2, 4)


def _by_token(v):
    """Transpose [b,c,g,u,q,...] to [b,c,q,g,u,...]."""
    return jnp.moveaxis(v, 4, 2)


def _by_group(v):
    """Transpose [b,c,q,g,n] to [b,c,g,q,n], or back."""
    return jnp.swapaxes(v, 2, 3)


def _flip(v):
    """Transpose [b,c,g,q,u,p] to [b,c,g,u,q,p], or back."""
    return jnp.swapaxes(v, 3, 4)


# XLA's CPU compiler adds up one number after the other, but its code for a matrix-vector product is fast: as a product with ones, a sum of
# 64 channels of 1,024 heads and tokens takes 17 µs instead of 65 µs. Elsewhere a matrix unit would round the summands to bfloat16.
def _sum_last(v, cpu):
    if not cpu:
        return jnp.sum(v, axis=-1)
    ones = jnp.ones(v.shape[-1], v.dtype)
    return jnp.matmul(v.reshape(-1, v.shape[-1]), ones, precision=product_precision(v.dtype)).reshape(v.shape[:-1])


def _sum_heads(v, cpu):
    """Sum [b,c,g,u,q,q] over u."""
    if not cpu:
        return jnp.sum(v, axis=3)
    return jnp.einsum("u,bcguij->bcgij", jnp.ones(v.shape[3], v.dtype), v, precision=product_precision(v.dtype))


def _sum_state(v, cpu):
    """Sum [b,c,g,n,u,p] to [b,c,g,u]."""
    if not cpu:
        return jnp.sum(v, axis=(3, 5))
    ones = jnp.ones(v.shape[3], v.dtype)
    return _sum_last(jnp.einsum("n,bcgnup->bcgup", ones, v, precision=product_precision(v.dtype)), cpu)


def _states_by_tokens(dot, states, tokens, cpu):
    """Contract [b,c,g,n,u,p] with [b,c,g,u,q,p] over heads and channels to [b,c,g,q,n]."""
    if cpu:  # Merge heads and channels; otherwise XLA copies the states to merge them. On TPU, XLA chooses better layouts itself.
        wide = jnp.swapaxes(tokens, -1, -2).reshape(*states.shape[:3], -1, tokens.shape[4])
        product = dot("bcgnz,bcgzi->bcgni", states.reshape(*states.shape[:4], -1), wide)
    else:
        product = dot("bcgnup,bcguip->bcgni", states, tokens)
    return jnp.swapaxes(product, -1, -2)


def _recurrence(added, through, state, reverse=False):
    """Apply state ← through · state + added per chunk. Return the states before each chunk (after it, in reverse) and the last state."""

    def pass_on(state, chunk):
        added_c, through_c = chunk
        return through_c * state + added_c, state

    leading = (jnp.moveaxis(added, 1, 0), jnp.moveaxis(through, 1, 0))
    state, states = lax.scan(pass_on, state, leading, reverse=reverse, unroll=added.shape[1] == 1)
    return jnp.moveaxis(states, 0, 1), state


def _outputs(chunks, A, D, state, cpu):
    """Return y [b,c,q,g,u,p] of the chunks, their entering states [b,c,g,n,u,p] and the state after the last chunk."""
    dtype = state.dtype
    dot = functools.partial(jnp.einsum, precision=product_precision(chunks.x.dtype), preferred_element_type=dtype)
    x, dt, B, C = _by_head(chunks.x), _by_head(chunks.dt), _by_group(chunks.B), _by_group(chunks.C)
    terms = _terms(dt, A, chunks.segments, chunks.before)

    surviving = (x * (terms.to_end * dt)[..., None]).astype(x.dtype)
    added = dot("bcgjn,bcgjup->bcgnup", B, _flip(surviving))
    entering, state = _recurrence(added, terms.through, state)

    scores = dot("bcgin,bcgjn->bcgij", C, B)
    weights = scores[:, :, :, None] * (terms.decay * dt[..., None, :])
    y = dot("bcguij,bcgujp->bcguip", weights.astype(x.dtype), x)
    read = _flip(dot("bcgin,bcgnup->bcgiup", C.astype(dtype), entering))
    y += read * terms.from_start[..., None] + D[..., None, None] * x
    return _by_token(y).astype(x.dtype), entering, state


def _gradients(chunks, entering, dy, A, D, d_state, cpu):
    """Return (dx, d_dt, dB, dC in the layouts of the chunks, dA and dD [b,c,g,u]), and the gradient of the state entering the first chunk.

    The gradients are written by hand, because autodiff would keep several [q,q] matrices per head, and transpose them.
    """
    dtype = d_state.dtype
    dot = functools.partial(jnp.einsum, precision=product_precision(chunks.x.dtype), preferred_element_type=dtype)
    x, dt, B, C = _by_head(chunks.x), _by_head(chunks.dt), _by_group(chunks.B), _by_group(chunks.C)
    dy = _by_head(dy.astype(x.dtype))
    terms = _terms(dt, A, chunks.segments, chunks.before)
    C_wide = C.astype(dtype)

    # Inside a chunk.
    scores = dot("bcgin,bcgjn->bcgij", C, B)
    weights = scores[:, :, :, None] * terms.decay
    d_weights = dot("bcguip,bcgujp->bcguij", dy, x)
    d_scores = _sum_heads(d_weights * (terms.decay * dt[..., None, :]), cpu).astype(x.dtype)
    # The decay of a pair grows with cum of the reader and falls with cum of the writer. Both sums use one matrix, without the decay of a
    # token to itself, which is 1. So their difference cancels as exactly as float32 allows.
    itself = jnp.eye(x.shape[4], dtype=bool)
    d_decays = jnp.where(itself, 0, d_weights * (weights * dt[..., None, :]))
    d_cum = _sum_last(d_decays, cpu) - jnp.sum(d_decays, axis=-2)
    dD = jnp.sum(jnp.where(itself, d_weights, 0), axis=(-2, -1))
    d_inputs = dot("bcguij,bcguip->bcgujp", weights.astype(x.dtype), dy)
    dC = dot("bcgij,bcgjn->bcgin", d_scores, B)
    dB = dot("bcgij,bcgin->bcgjn", d_scores, C)

    # Contribution of the entering state to y.
    read = _flip(dot("bcgin,bcgnup->bcgiup", C_wide, entering))
    d_cum += _sum_last(dy * read, cpu) * terms.from_start
    d_read = dy * terms.from_start[..., None]
    dC += _states_by_tokens(dot, entering, d_read, cpu)
    d_entering = dot("bcgin,bcgiup->bcgnup", C_wide, _flip(d_read))

    # From chunk to chunk, backwards.
    d_leaving, d_state = _recurrence(d_entering, terms.through, d_state, reverse=True)
    d_last = _sum_state(d_leaving * entering, cpu) * terms.through[:, :, :, 0, :, 0]

    # Contribution of tokens to the state at the end of their chunk.
    dB += _states_by_tokens(dot, d_leaving, x * (terms.to_end * dt)[..., None], cpu)
    d_added = _flip(dot("bcgjn,bcgnup->bcgjup", B.astype(dtype), d_leaving)) * terms.to_end[..., None]
    d_survives = _sum_last(d_added * x, cpu) * dt
    d_cum = (d_cum - d_survives).at[..., -1].add(d_last + jnp.sum(d_survives, axis=-1))

    d_inputs += d_added
    d_sums = dot("bcij,bcgui->bcguj", terms.sums, d_cum, precision=lax.Precision.HIGHEST)
    d_sums = jnp.where(is_clamped(dt, A[..., None]), 0, d_sums)
    d_dt = _sum_last(d_inputs * x, cpu) + d_sums * A[..., None]
    dx = d_inputs * dt[..., None] + D[..., None, None] * dy
    dx, d_dt = _by_token(dx).astype(x.dtype), _by_token(d_dt)
    dB, dC = _by_group(dB).astype(B.dtype), _by_group(dC).astype(C.dtype)
    return (dx, d_dt, dB, dC, jnp.sum(d_sums * dt, axis=-1), dD), d_state


def _one_by_one(step, state, arrays, reverse=False):
    """Apply `step(state, arrays) -> outputs, state` to one chunk [b,1,...] after the other, instead of to all chunks [b,c,...] at once."""

    def body(state, chunk):
        outputs, state = step(state, jax.tree.map(lambda v: v[:, None], chunk))
        return state, jax.tree.map(lambda v: v[:, 0], outputs)

    state, outputs = lax.scan(body, state, jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), arrays), reverse=reverse)
    return jax.tree.map(lambda v: jnp.moveaxis(v, 0, 1), outputs), state


def _forward(chunks, A, D, state, *, keep, cpu):
    def step(state, chunks):
        y, entering, state = _outputs(chunks, A, D, state, cpu)
        return (y, entering if keep else None), state

    (y, entering), state = _one_by_one(step, state, chunks) if cpu else step(state, chunks)
    return y, state, entering


def _backward(chunks, A, D, entering, dy, d_state, *, cpu):
    def step(d_state, arrays):
        return _gradients(*arrays, A, D, d_state, cpu)

    arrays = chunks, entering, dy
    (dx, d_dt, dB, dC, dA, dD), d_state = (
        _one_by_one(step, d_state, arrays, reverse=True) if cpu else step(d_state, arrays)
    )
    return _Chunks(dx, d_dt, dB, dC, None, None), jnp.sum(dA, axis=(0, 1)), jnp.sum(dD, axis=(0, 1)), d_state


def _by_platform(function, *args, **options):
    on_cpu, elsewhere = (functools.partial(function, **options, cpu=cpu) for cpu in (True, False))
    return lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)


@jax.custom_vjp
def _scan_chunks(chunks, A, D, state):
    return _by_platform(_forward, chunks, A, D, state, keep=False)[:2]


def _save(chunks, A, D, state):
    y, state, entering = _by_platform(_forward, chunks, A, D, state, keep=True)
    return (y, state), (chunks, A, D, entering)


def _restore(saved, cotangents):
    return _by_platform(_backward, *saved, *cotangents)


_scan_chunks.defvjp(_save, _restore)
