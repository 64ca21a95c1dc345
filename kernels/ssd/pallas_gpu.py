"""The selective scan for NVIDIA GPUs: Pallas kernels that Triton compiles (state-space duality, arXiv:2405.21060, section 6).

The recurrence S_t = exp(dt_t A) S_{t-1} + dt_t x_t ⊗ B_t, y_t = S_t C_t + D x_t in chunks of q tokens: cum is the running sum of dt A
inside a chunk (and segment), S_in is the entering state of the chunk, and sums are over pairs in the same segment,

    y_i   = Σ_{j≤i} exp(cum_i - cum_j) (C_i·B_j) dt_j x_j  +  from_start_i S_in C_i  +  D x_i      from_start = exp(cum)
    S_out = Σ_j survives_j x_j ⊗ B_j  +  through S_in                                      survives = exp(cum_last - cum) dt

where from_start, survives and through (from_start of the last token) are 0 across a segment boundary. Blocks of a GPU run concurrently and
in any order, so no state can pass from one to the next. Three kernels divide the work:

  carry      One block per head and slice of its features. It loops over the chunks with the state in registers and writes their entering
             states. The backward pass is the same loop from the last chunk to the first: it carries the gradient of S_out, and the
             gradient of S_in is through · dS_out + Σ_i from_start_i dy_i ⊗ C_i.
  outputs    One block per chunk and several heads of a group. It computes C·Bᵀ once, then y head by head.
  gradients  The same blocks. It computes C·Bᵀ once, then dx and the other gradients head by head, and sums dB, dC and the gradient of C·Bᵀ
             over the heads in registers.

The q×q decays stay in registers. XLA computes the arrays [b,t,h] (cum and its factors), and JAX differentiates them. Residuals of the
backward pass are the inputs and the entering states of the chunks; the rest is computed again.

Pallas for Triton is deprecated since jax 0.11.2. It works with a warning in 0.12.0.1, the newest version at the time of writing.
"""

from __future__ import annotations

import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.ssd.decay import log_decay, masked_exp
from plamo2_kernels.ssd.pallas_gpu_kernels import carry_kernel, gradients_kernel, outputs_kernel


class _Blocks(NamedTuple):
    """Block sizes. Triton loads only powers of two."""

    chunk: int
    """Tokens per chunk."""
    rows: int
    """Features of a head that are processed at once; a block of `carry` keeps the state of this many."""
    heads: int
    """Heads per block of `outputs` or `gradients`, which share C·Bᵀ."""
    warps: int
    """Warps per block of `outputs`."""
    gradient_warps: int


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
    """Chunked scan on a GPU, with log-decays, states and sums in float32 and products in the dtype of x, B and C.

    Args:
        x, dt, A, B, C, D, initial_state: As for `api.ssd`; dt must be 0 at padding.
        ordinals: `segments.segment_ordinals` of the row, or None for one document per row.
        chunk_size: Upper bound on the tokens per chunk. Results do not depend on it beyond rounding.
        interpret: Run the kernels in the interpreter, on any platform.

    Raises:
        ImplementationError: The inputs are float64.
    """
    b, t, h, p = x.shape
    g, n = B.shape[2:]
    dtype = jnp.result_type(x, B, C)
    if dtype.itemsize > 4:
        raise ImplementationError(
            f"ssd: pallas_gpu computes in float32, but the inputs are {dtype}. Use implementation='xla'"
        )
    # Triton needs powers of two, and at least 16 for products. Padding with zeros does not change results: features and states are
    # independent, and tokens with dt = 0 do not change the state. Published sizes need no padding.
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
    """Return the next power of two, at least 16, the minimum for a Triton product."""
    return max(16, pl.next_power_of_2(size))


# The speed is NOT MEASURED, because no GPU was available. These are compiler figures: Triton (in the CUDA plugin of jaxlib 0.10.2) and
# ptxas 12.9 built the kernels for sm_90, Hopper, whose multiprocessor has 228 KB of shared memory and 64 k registers: two blocks of 4 warps
# with 255 registers per thread, or one of 8. Registers per thread and shared memory per block for p=128, n=64 (carry always has 4 warps):
#
#            chunk rows warps     carry         outputs       gradients
#   2 bytes     64   32     4     78   29 KB    187   25 KB   255   57 KB   448 bytes per thread spilled to memory
#   4 bytes     32   16     8     52   23 KB     59   21 KB   180   35 KB
#
# - Full float32 products run outside the tensor cores and keep their operands in registers, so blocks are smaller. With 64 tokens, or with
#   all features of a head at once, gradients spilled 4 to 40 KB.
# - The tensor cores of Hopper need 64 tokens for 4 warps; 8 warps would compute the same products twice. For n above 64, gradients use 8
#   warps nevertheless: at p=64, n=128 they spill 0.2 KB, and 1.1 KB with 4 warps.
# - A longer chunk writes and reads fewer states, which at 64 tokens and n=64 have twice the bytes of x in bfloat16. But a chunk of 128
#   spilled 1.2 KB in the gradients, with 8 warps.
# - With 8 heads per block, a row of 4096 tokens and 64 heads has 512 blocks, for the 132 multiprocessors of an H100.
def _blocks(dtype, t: int, heads_per_group: int, p: int, n: int, chunk_size: int | None) -> _Blocks:
    chunk, rows, warps = (64, 32, 4) if dtype.itemsize == 2 else (32, 16, 8)
    if chunk_size is not None:
        # Round down to a power of two.
        chunk = min(chunk, _power_of_two(chunk_size // 2 + 1))
    return _Blocks(
        chunk=min(chunk, _power_of_two(t)),
        rows=min(rows, p),
        heads=max(d for d in range(1, 9) if heads_per_group % d == 0),
        warps=warps,
        gradient_warps=8 if n > 64 else warps,
    )


class _Terms(NamedTuple):
    """Terms that depend only on dt, A and the segments, with the tokens of a head adjacent."""

    dt: Float[Array, "b h t"]
    cum: Float[Array, "b h t"]
    """Running sum of dt A from the start of the chunk or, if later, of the segment."""
    from_start: Float[Array, "b h t"]
    """exp(cum) for tokens that see the state entering their chunk, else 0."""
    survives: Float[Array, "b h t"]
    """exp(cum_last - cum) dt for tokens whose contribution survives to the chunk's end, else 0."""
    through: Float[Array, "b h c"]
    """Factor of the entering state in the state at the end of the chunk."""


def _terms(ordinals, chunk, dt, A) -> _Terms:
    b, t, h = dt.shape
    ordinals = ordinals.reshape(b, 1, -1, chunk)
    pairs = jnp.tril(ordinals[..., :, None] == ordinals[..., None, :])[:, 0]
    before = jnp.concatenate([ordinals[:, :, :1, :1], ordinals[:, :, :-1, -1:]], axis=2)
    # The running sum restarts at each segment, as a product with the mask. A difference of sums across a boundary would leave rounding
    # errors of the other document in the gradient of dt.
    dt = jnp.moveaxis(dt, 2, 1).reshape(b, h, -1, chunk)
    decays = log_decay(dt, A[:, None, None])
    cum = jnp.einsum("bcij,bhcj->bhci", pairs.astype(dt.dtype), decays, precision=lax.Precision.HIGHEST)
    from_start = masked_exp(ordinals == before, cum)
    survives = masked_exp(ordinals == ordinals[..., -1:], cum[..., -1:] - cum) * dt
    through = from_start[..., -1]
    return _Terms(*(v.reshape(b, h, t) for v in (dt, cum, from_start, survives)), through)


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
    """Apply state ← through · state + Σ weight u ⊗ v per chunk. Return the states before each chunk and after the last one."""
    b, t, h, p = u.shape
    g, n = v.shape[2:]
    chunks, rows = through.shape[2], blocks.rows
    heads_per_group = h // g
    state = pl.BlockSpec((None, None, rows, n), lambda k, i, r: (r, i, k, 0))
    return pl.pallas_call(
        functools.partial(carry_kernel, chunk=blocks.chunk, from_the_end=from_the_end),
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
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="ssd_carry",
    )(u, v, weight, through, start)


def _outputs(x, B, C, D, terms: _Terms, ordinals, entering, blocks: _Blocks, interpret) -> Float[Array, "b t h p"]:
    b, t, h, p = x.shape
    specs = _specs(blocks, h // B.shape[2], p, B.shape[3])
    return pl.pallas_call(
        functools.partial(outputs_kernel, rows=blocks.rows),
        grid=(h // blocks.heads, t // blocks.chunk, b),
        in_specs=[specs.inputs, *[specs.group] * 2, specs.head, *[specs.tokens] * 3, specs.ordinals, specs.states],
        out_specs=specs.inputs,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltriton.CompilerParams(num_warps=blocks.warps, num_stages=2),
        interpret=interpret,
        name="ssd_outputs",
    )(x, B, C, D, terms.dt, terms.cum, terms.from_start, ordinals, entering)


def _gradients(x, dy, B, C, D, terms: _Terms, ordinals, entering, leaving, blocks: _Blocks, interpret):
    """Return the gradients of x, B and C, of D per token [b,h,t], and of the terms."""
    b, t, h, p = x.shape
    g, n = B.shape[2:]
    specs = _specs(blocks, h // g, p, n)
    inputs = [*[specs.inputs] * 2, *[specs.group] * 2, specs.head, *[specs.tokens] * 4]
    # Blocks with the same B and C cannot add to one array concurrently: each writes its own sum, and XLA adds them.
    splits = h // g // blocks.heads
    sums = pl.BlockSpec(
        (None, None, blocks.chunk, None, n), lambda k, c, r: (lax.rem(k, splits), r, c, lax.div(k, splits), 0)
    )
    a_token = jax.ShapeDtypeStruct((b, h, t), jnp.float32)
    a_chunk = jax.ShapeDtypeStruct((b, h, t // blocks.chunk), jnp.float32)
    a_sum = jax.ShapeDtypeStruct((splits, b, t, g, n), jnp.float32)
    dx, dB, dC, d_skip, d_dt, d_cum, d_from_start, d_survives, d_through = pl.pallas_call(
        functools.partial(gradients_kernel, rows=blocks.rows),
        grid=(h // blocks.heads, t // blocks.chunk, b),
        in_specs=[*inputs, specs.ordinals, specs.states, specs.states],
        out_specs=[specs.inputs, sums, sums, *[specs.tokens] * 5, specs.chunk],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), a_sum, a_sum, *[a_token] * 5, a_chunk],
        compiler_params=pltriton.CompilerParams(num_warps=blocks.gradient_warps, num_stages=2),
        interpret=interpret,
        name="ssd_gradients",
    )(x, dy, B, C, D, terms.dt, terms.cum, terms.from_start, terms.survives, ordinals, entering, leaving)
    d_terms = _Terms(d_dt, d_cum, d_from_start, d_survives, d_through)
    return dx, dB.sum(0).astype(B.dtype), dC.sum(0).astype(C.dtype), d_skip, d_terms


def _specs(blocks: _Blocks, heads_per_group: int, p: int, n: int) -> types.SimpleNamespace:
    """Return the parts of the arrays that a block of `outputs` or `gradients` sees, at the grid index (heads k, chunk c, row r).

    The first grid axis runs fastest, so blocks that read the same B and C run at about the same time and find them in the L2 cache.
    """
    chunk, heads = blocks.chunk, blocks.heads
    splits = heads_per_group // heads
    return types.SimpleNamespace(
        inputs=pl.BlockSpec((None, chunk, heads, p), lambda k, c, r: (r, c, k, 0)),
        group=pl.BlockSpec((None, chunk, None, n), lambda k, c, r: (r, c, lax.div(k, splits), 0)),
        head=pl.BlockSpec((heads,), lambda k, c, r: (k,)),
        tokens=pl.BlockSpec((None, heads, chunk), lambda k, c, r: (r, k, c)),
        chunk=pl.BlockSpec((None, heads, None), lambda k, c, r: (r, k, c)),
        ordinals=pl.BlockSpec((None, chunk), lambda k, c, r: (r, c)),
        states=pl.BlockSpec((None, None, heads, p, n), lambda k, c, r: (r, c, k, 0, 0)),
    )
