"""The selective scan for NVIDIA GPUs: Pallas kernels that Triton compiles (state-space duality, arXiv:2405.21060, section 6).

The recurrence S_t = exp(dt_t A) S_{t-1} + dt_t x_t ⊗ B_t, y_t = S_t C_t + D x_t, in chunks of q tokens. With cum the running sum of dt A
inside a chunk (and segment), S_in the state that enters the chunk and sums over pairs of one segment,

    y_i   = Σ_{j≤i} exp(cum_i - cum_j) (C_i·B_j) dt_j x_j  +  from_start_i S_in C_i  +  D x_i      from_start = exp(cum)
    S_out = Σ_j survives_j x_j ⊗ B_j  +  through S_in                                      survives = exp(cum_last - cum) dt

where from_start, survives and through (from_start of the last token) are 0 across a segment boundary. Blocks of a GPU run at once and in
no order, so nothing can be carried from one to the next; the work is cut into three kernels:

  carry      a block a head and a slice of its channels, loops over the chunks with the state in registers and writes the states that
             enter them. The backward pass is the same loop run from the last chunk to the first: the gradient of S_out is carried, from
             which that of S_in is through · dS_out + Σ_i from_start_i dy_i ⊗ C_i.
  outputs    a block a chunk and some heads of a group: C·Bᵀ once, then y head by head.
  gradients  the same blocks: C·Bᵀ once, then dx and all that belongs to a head, head by head, while dB, dC and the gradient of C·Bᵀ are
             summed over the heads in registers.

The q×q decays live and die in registers. What is [b,t,h] (cum and the factors made of it) is left to XLA, and differentiated by JAX.
Kept for the backward pass: the inputs and the states that enter the chunks; the rest is computed again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int


class _Blocks(NamedTuple):
    """How the work is cut: chunk and heads bound what a block of outputs and gradients holds, rows what a block of carry does."""

    chunk: int
    """Tokens a chunk; a power of two, as everything Triton loads."""
    heads: int
    """Heads that share a block's C·Bᵀ."""
    rows: int
    """Channels of a head whose state one block of carry keeps."""


def ssd_pallas_gpu(
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    ordinals: Int[Array, "b t"] | None,
    initial_state: Float[Array, "b h p n"],
    chunk_size: int | None = None,
    *,
    interpret: Any = False,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"]]:
    """Chunked scan on a GPU; log-decays, states and sums in float32, products in the dtype of x, B and C. See `api.ssd`.

    Args:
        ordinals: `segments.segment_ordinals` of the row (dt is already 0 at padding), or None for one document a row.
        chunk_size: at most so many tokens a chunk, where the table of block sizes allows more; results do not depend on it.
        interpret: run the kernels in the interpreter, on any platform.

    Raises:
        ValueError: inputs in float64.
    """
    b, t, h, p = x.shape
    g, n = B.shape[2:]
    dtype = jnp.result_type(x, B, C)
    if dtype.itemsize > 4:
        raise ValueError(f"ssd: pallas_gpu computes in float32, the inputs are {dtype}; use implementation='xla'")
    # Triton takes powers of two, and at least 16 of everything it multiplies. Padding with zeros leaves all else as it is: no channel or
    # state of its own sees another, and tokens with dt = 0 change no state. Published sizes need none.
    more_p, more_n = _power_of_two(p) - p, _power_of_two(n) - n
    blocks = _blocks(dtype, t, h // g, p + more_p, n + more_n, chunk_size)
    more_t = -t % blocks.chunk
    if ordinals is None:
        ordinals = jnp.zeros((b, t), jnp.int32)
    y, final_state = _scan(
        jnp.pad(x.astype(dtype), ((0, 0), (0, more_t), (0, 0), (0, more_p))),
        jnp.pad(dt, ((0, 0), (0, more_t), (0, 0))),
        A,
        jnp.pad(B.astype(dtype), ((0, 0), (0, more_t), (0, 0), (0, more_n))),
        jnp.pad(C.astype(dtype), ((0, 0), (0, more_t), (0, 0), (0, more_n))),
        D,
        jnp.pad(ordinals, ((0, 0), (0, more_t)), mode="edge"),
        jnp.pad(initial_state, ((0, 0), (0, 0), (0, more_p), (0, more_n))),
        blocks,
        interpret,
    )
    return y[:, :t, :, :p].astype(x.dtype), final_state[:, :, :p, :n]


def _power_of_two(size: int) -> int:
    """The next one, at least the 16 that a Triton product needs."""
    return max(16, pl.next_power_of_2(size))


def _blocks(dtype, t: int, heads_per_group: int, p: int, n: int, chunk_size: int | None) -> _Blocks:
    chunk = 64 if dtype.itemsize == 2 else 32
    if chunk_size is not None:
        # Down to a power of two.
        chunk = min(chunk, max(16, 1 << chunk_size.bit_length() - 1))
    chunk = min(chunk, _power_of_two(t))
    heads = max(d for d in range(1, 9) if heads_per_group % d == 0)
    return _Blocks(chunk, heads, min(p, 64))


class _Terms(NamedTuple):
    """What depends on dt, A and the segments alone, a head's tokens side by side."""

    dt: Float[Array, "b h t"]
    cum: Float[Array, "b h t"]
    """Running sum of dt A from the start of the chunk or, if later, of the segment."""
    from_start: Float[Array, "b h t"]
    """exp(cum) for tokens that see the state entering their chunk, else 0."""
    survives: Float[Array, "b h t"]
    """exp(cum_last - cum) dt for tokens whose contribution survives to the chunk's end, else 0."""
    through: Float[Array, "b h c"]
    """What a chunk lets through of the state that enters it."""


def _terms(ordinals, chunk, dt, A) -> _Terms:
    b, t, h = dt.shape
    ordinals = ordinals.reshape(b, 1, -1, chunk)
    pairs = jnp.tril(ordinals[..., :, None] == ordinals[..., None, :])[:, 0]
    before = jnp.concatenate([ordinals[:, :, :1, :1], ordinals[:, :, :-1, -1:]], axis=2)
    # The running sum starts anew with each segment, as a product with the mask: a difference of sums that run across a boundary would
    # leave rounding errors of the other document in dt's gradient.
    dt = jnp.moveaxis(dt, 2, 1).reshape(b, h, -1, chunk)
    log_decay = dt * A[:, None, None]
    cum = jnp.einsum("bcij,bhcj->bhci", pairs.astype(dt.dtype), log_decay, precision=lax.Precision.HIGHEST)
    from_start = _masked_exp(ordinals == before, cum)
    survives = _masked_exp(ordinals == ordinals[..., -1:], cum[..., -1:] - cum) * dt
    through = from_start[..., -1]
    return _Terms(*(v.reshape(b, h, t) for v in (dt, cum, from_start, survives)), through)


def _masked_exp(mask, exponent):
    # Masked before exp: the difference of two segments' sums can be large and positive.
    return jnp.exp(jnp.where(mask, exponent, -jnp.inf))


@functools.partial(jax.custom_vjp, nondiff_argnums=(8, 9))
def _scan(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret):
    return _save(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret)[0]


def _save(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret):
    terms = _terms(ordinals, blocks.chunk, dt, A)
    entering, final_state = _carry(x, B, terms.survives, terms.through, initial_state, blocks, interpret)
    y = _outputs(x, B, C, D, terms, ordinals, entering, blocks, interpret)
    return (y, final_state), (x, dt, A, B, C, D, ordinals, entering)


def _backward(blocks, interpret, saved, cotangents):
    x, dt, A, B, C, D, ordinals, entering = saved
    dy, d_final = cotangents
    terms, to_dt_and_A = jax.vjp(functools.partial(_terms, ordinals, blocks.chunk), dt, A)
    leaving, d_initial = _carry(dy, C, terms.from_start, terms.through, d_final, blocks, interpret, from_the_end=True)
    dx, dB, dC, d_skip, d_terms = _gradients(x, dy, B, C, D, terms, ordinals, entering, leaving, blocks, interpret)
    d_dt, dA = to_dt_and_A(d_terms)
    return dx, d_dt, dA, dB, dC, d_skip.sum((0, 2)), None, d_initial


_scan.defvjp(_save, _backward)


def _dot(a, b, contract):
    """Product over axis contract[0] of a and contract[1] of b, in float32; of float32 inputs in full, where Triton's default is TF32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (contract[:1], contract[1:]), ((), ())
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _carry_kernel(u_ref, v_ref, weight_ref, through_ref, start_ref, before_ref, end_ref, *, chunk, from_the_end):
    """Refs u [t, rows], v [t, n], weight [t], through [c], start and end [rows, n], before [c, rows, n]."""
    chunks = through_ref.shape[0]

    def step(i, state):
        c = chunks - 1 - i if from_the_end else i
        before_ref[c] = state
        tokens = pl.ds(c * chunk, chunk)
        weighted = (u_ref[tokens, :] * weight_ref[tokens][:, None]).astype(u_ref.dtype)
        return through_ref[c] * state + _dot(weighted, v_ref[tokens, :], (0, 0))

    end_ref[...] = lax.fori_loop(0, chunks, step, start_ref[...])


def _carry(
    u: Float[Array, "b t h p"],
    v: Float[Array, "b t g n"],
    weight: Float[Array, "b h t"],
    through: Float[Array, "b h c"],
    start: Float[Array, "b h p n"],
    blocks: _Blocks,
    interpret: Any,
    from_the_end: bool = False,
) -> tuple[Float[Array, "b c h p n"], Float[Array, "b h p n"]]:
    """state ← through state + Σ weight u ⊗ v, chunk by chunk: the states before each chunk and after all of them."""
    b, t, h, p = u.shape
    g, n = v.shape[2:]
    chunks, rows = through.shape[2], blocks.rows
    heads_per_group = h // g
    state = pl.BlockSpec((None, None, rows, n), lambda k, i, r: (r, i, k, 0))
    return pl.pallas_call(
        functools.partial(_carry_kernel, chunk=blocks.chunk, from_the_end=from_the_end),
        grid=(p // rows, h, b),
        in_specs=[
            pl.BlockSpec((None, t, None, rows), lambda k, i, r: (r, 0, i, k)),
            pl.BlockSpec((None, t, None, n), lambda k, i, r: (r, 0, lax.div(i, heads_per_group), 0)),
            pl.BlockSpec((None, None, t), lambda k, i, r: (r, i, 0)),
            pl.BlockSpec((None, None, chunks), lambda k, i, r: (r, i, 0)),
            state,
        ],
        out_specs=[pl.BlockSpec((None, chunks, None, rows, n), lambda k, i, r: (r, 0, i, k, 0)), state],
        out_shape=[
            jax.ShapeDtypeStruct((b, chunks, h, p, n), jnp.float32),
            jax.ShapeDtypeStruct((b, h, p, n), jnp.float32),
        ],
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=4),
        interpret=interpret,
        name="ssd_carry",
    )(u, v, weight, through, start)


def _pairs(ordinals):
    """Whether token j (columns) is at or before token i (rows), in its segment."""
    token = jnp.arange(ordinals.shape[0])
    return (token[:, None] >= token[None, :]) & (ordinals[:, None] == ordinals[None, :])


def _outputs_kernel(x_ref, B_ref, C_ref, D_ref, dt_ref, cum_ref, from_start_ref, ordinals_ref, entering_ref, y_ref):
    """Refs x and y [q, heads, p], B and C [q, n], D [heads], dt, cum and from_start [heads, q], ordinals [q], entering [heads, p, n]."""
    C = C_ref[...]
    scores = _dot(C, B_ref[...], (1, 1))
    pairs = _pairs(ordinals_ref[...])

    def head(i, carry):
        x, cum = x_ref[:, i, :], cum_ref[i, :]
        weights = scores * _masked_exp(pairs, cum[:, None] - cum[None, :]) * dt_ref[i, :][None, :]
        y = _dot(weights.astype(x.dtype), x, (1, 0))
        y += _dot(C, entering_ref[i].astype(C.dtype), (1, 1)) * from_start_ref[i, :][:, None]
        y_ref[:, i, :] = (y + D_ref[i] * x).astype(y_ref.dtype)
        return carry

    lax.fori_loop(0, x_ref.shape[1], head, 0)


def _outputs(x, B, C, D, terms: _Terms, ordinals, entering, blocks: _Blocks, interpret) -> Float[Array, "b t h p"]:
    b, t, h, p = x.shape
    specs = _specs(blocks, h // B.shape[2], p, B.shape[3])
    return pl.pallas_call(
        _outputs_kernel,
        grid=(h // blocks.heads, t // blocks.chunk, b),
        in_specs=[
            specs.inputs,
            specs.group,
            specs.group,
            specs.head,
            *[specs.tokens] * 3,
            specs.ordinals,
            specs.states,
        ],
        out_specs=specs.inputs,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="ssd_outputs",
    )(x, B, C, D, terms.dt, terms.cum, terms.from_start, ordinals, entering)


def _gradients_kernel(
    x_ref,
    dy_ref,
    B_ref,
    C_ref,
    D_ref,
    dt_ref,
    cum_ref,
    from_start_ref,
    survives_ref,
    ordinals_ref,
    entering_ref,
    leaving_ref,
    dx_ref,
    dB_ref,
    dC_ref,
    d_skip_ref,
    d_dt_ref,
    d_cum_ref,
    d_from_start_ref,
    d_survives_ref,
    d_through_ref,
):
    """Refs as in `_outputs_kernel`; leaving [heads, p, n] is the gradient of the states that leave the chunk, d_through [heads]."""
    dtype = x_ref.dtype
    B, C = B_ref[...], C_ref[...]
    scores = _dot(C, B, (1, 1))
    own_score = jnp.sum(B.astype(jnp.float32) * C.astype(jnp.float32), axis=1)
    pairs = _pairs(ordinals_ref[...])
    token = jnp.arange(scores.shape[0])
    earlier = token[:, None] > token[None, :]

    def head(i, sums):
        dB, dC, d_scores = sums
        x, dy = x_ref[:, i, :], dy_ref[:, i, :]
        dt, cum, from_start, survives = (ref[i, :] for ref in (dt_ref, cum_ref, from_start_ref, survives_ref))

        # Pairs of tokens. What a token owes itself is summed apart: its decay is 1 whatever cum is, and left among the pairs would cancel
        # in d_cum only up to rounding.
        decay = _masked_exp(pairs, cum[:, None] - cum[None, :])
        d_weights = _dot(dy, x, (1, 1)) * decay
        d_scores += d_weights * dt[None, :]
        d_pairs = jnp.where(earlier, d_weights * scores, 0)
        to_later = jnp.sum(d_pairs, axis=0)
        own = jnp.sum(dy.astype(jnp.float32) * x.astype(jnp.float32), axis=1)
        d_skip_ref[i, :] = own
        d_dt_ref[i, :] = to_later + own * own_score
        d_cum_ref[i, :] = jnp.sum(d_pairs * dt[None, :], axis=1) - to_later * dt
        dx = _dot((scores * decay * dt[None, :]).astype(dtype), dy, (0, 0)) + D_ref[i] * dy

        # The state that enters and the one that leaves.
        entering, leaving = entering_ref[i], leaving_ref[i]
        d_through_ref[i] = jnp.sum(entering * leaving)
        to_C = _dot(dy, entering.astype(dtype), (1, 0))
        to_B = _dot(x, leaving.astype(dtype), (1, 0))
        d_from_start_ref[i, :] = jnp.sum(to_C * C, axis=1)
        d_survives_ref[i, :] = jnp.sum(to_B * B, axis=1)
        dx += _dot(B, leaving.astype(dtype), (1, 1)) * survives[:, None]
        dx_ref[:, i, :] = dx.astype(dx_ref.dtype)
        return dB + to_B * survives[:, None], dC + to_C * from_start[:, None], d_scores

    zeros = jnp.zeros(B.shape, jnp.float32)
    dB, dC, d_scores = lax.fori_loop(0, x_ref.shape[1], head, (zeros, zeros, jnp.zeros_like(scores)))
    d_scores = d_scores.astype(dtype)
    dB_ref[...] = dB + _dot(d_scores, C, (0, 0))
    dC_ref[...] = dC + _dot(d_scores, B, (1, 0))


def _gradients(x, dy, B, C, D, terms: _Terms, ordinals, entering, leaving, blocks: _Blocks, interpret):
    """Gradients of x, B and C, of D a token [b,h,t], and of the terms."""
    b, t, h, p = x.shape
    g, n = B.shape[2:]
    specs = _specs(blocks, h // g, p, n)
    # Blocks that share a group's B and C would have to add up one after another: each writes a sum of its own, for XLA to add.
    splits = h // g // blocks.heads
    sums = pl.BlockSpec(
        (None, None, blocks.chunk, None, n), lambda k, c, r: (lax.rem(k, splits), r, c, lax.div(k, splits), 0)
    )
    a_token = jax.ShapeDtypeStruct((b, h, t), jnp.float32)
    a_sum = jax.ShapeDtypeStruct((splits, b, t, g, n), jnp.float32)
    dx, dB, dC, d_skip, d_dt, d_cum, d_from_start, d_survives, d_through = pl.pallas_call(
        _gradients_kernel,
        grid=(h // blocks.heads, t // blocks.chunk, b),
        in_specs=[
            specs.inputs,
            specs.inputs,
            specs.group,
            specs.group,
            specs.head,
            *[specs.tokens] * 4,
            specs.ordinals,
            specs.states,
            specs.states,
        ],
        out_specs=[
            specs.inputs,
            sums,
            sums,
            *[specs.tokens] * 5,
            pl.BlockSpec((None, blocks.heads, None), lambda k, c, r: (r, k, c)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            a_sum,
            a_sum,
            *[a_token] * 5,
            jax.ShapeDtypeStruct((b, h, t // blocks.chunk), jnp.float32),
        ],
        compiler_params=pltriton.CompilerParams(num_warps=8, num_stages=2),
        interpret=interpret,
        name="ssd_gradients",
    )(x, dy, B, C, D, terms.dt, terms.cum, terms.from_start, terms.survives, ordinals, entering, leaving)
    d_terms = _Terms(d_dt, d_cum, d_from_start, d_survives, d_through)
    return dx, dB.sum(0).astype(B.dtype), dC.sum(0).astype(C.dtype), d_skip, d_terms


class _Specs(NamedTuple):
    """What a block of `outputs` or `gradients` sees of the arrays, at place (heads k, chunk c, row r) of the grid.

    The first axis runs fastest: blocks that read the same B and C run close together, and find them in the L2 cache.
    """

    inputs: pl.BlockSpec
    group: pl.BlockSpec
    head: pl.BlockSpec
    tokens: pl.BlockSpec
    ordinals: pl.BlockSpec
    states: pl.BlockSpec


def _specs(blocks: _Blocks, heads_per_group: int, p: int, n: int) -> _Specs:
    chunk, heads = blocks.chunk, blocks.heads
    splits = heads_per_group // heads
    return _Specs(
        inputs=pl.BlockSpec((None, chunk, heads, p), lambda k, c, r: (r, c, k, 0)),
        group=pl.BlockSpec((None, chunk, None, n), lambda k, c, r: (r, c, lax.div(k, splits), 0)),
        head=pl.BlockSpec((heads,), lambda k, c, r: (k,)),
        tokens=pl.BlockSpec((None, heads, chunk), lambda k, c, r: (r, k, c)),
        ordinals=pl.BlockSpec((None, chunk), lambda k, c, r: (r, c)),
        states=pl.BlockSpec((None, None, heads, p, n), lambda k, c, r: (r, c, k, 0, 0)),
    )
