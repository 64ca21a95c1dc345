"""The selective scan on TPU: hand-written Pallas kernels, forward and backward.

Recurrence per head (Mamba-2, arXiv:2405.21060, section 3), with a_t = dt_t A and a state S [n,p]:

    S_t = exp(a_t) S_{t-1} + dt_t B_t ⊗ x_t,        y_t = C_t S_t + D x_t

In chunks (section 6): cum is the running sum of a inside a chunk and segment, and S_in is the entering state of the chunk. Pairs of tokens,
and pairs of a token and a state, are masked unless both are in the same segment:

    y_i   = Σ_{j≤i} exp(cum_i - cum_j) (C_i·B_j) dt_j x_j  +  exp(cum_i) C_i S_in  +  D x_i
    S_out = Σ_j exp(cum_last - cum_j) dt_j B_j ⊗ x_j       +  exp(cum_last) S_in

All three stages are one kernel. The grid runs over batch, blocks of heads and chunks, with the chunks in order. The states of a block's
heads stay in VMEM from chunk to chunk, and C·Bᵀ of a chunk is computed once per block and shared by its heads. The [q,q] decay matrices are
never written to HBM, and in inference neither are the chunk states.

Residuals of the backward pass are the inputs, and the entering states of the chunks in float32. The backward kernel runs over the chunks in
reverse, with the gradient of the state in VMEM, and computes cum, the decays and C·Bᵀ again. With G_ji = x_j·dy_i, L_ji = exp(cum_i -
cum_j) and dS the gradient of S_out (all sums are over masked pairs; the sums of E exclude j = i, where the decay is constant):

    dx_j    = dt_j (Σ_i L_ji (C_i·B_j) dy_i + exp(cum_last - cum_j) B_j dS) + D dy_j
    dCB_ij  = Σ_heads dt_j G_ji L_ji            E_ji = dt_j G_ji L_ji (C_i·B_j)
    dC      = dCB B + Σ_heads exp(cum) dy S_inᵀ,   dB = dCBᵀ C + Σ_heads exp(cum_last - cum) dt x dSᵀ
    dS_in   = exp(cum_last) dS + Σ_i exp(cum_i) C_i ⊗ dy_i
    dcum_i  = Σ_j E_ji - Σ_j E_ij + the same of the terms with states;   da = reverse running sum of dcum

Layouts: x and y are processed per head as [t,p] tiles, [b,h,t,p] in memory. XLA chooses the same layout for the projections, so no copy is
needed between them and the kernel. Scalars per token and head (dt and the decays) have their tokens along lanes ("rows" below). Where a
matrix needs them along sublanes, eight heads are transposed at a time. Decays are powers of two, so that the exponential is one operation.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.padding import pad_tokens
from plamo2_kernels.ssd.pallas_tpu_backward import backward_kernel
from plamo2_kernels.ssd.pallas_tpu_forward import forward_kernel

# Chunk and heads by the compiler's figures at the 8B shape (b=1, t=8192, h=64, p=128, n=64, bfloat16): cycles per token of the chip,
# forward / forward + backward, from `plamo2 plan kernel ssd --layouts auto --chunk N`. The ranking is the same on every chip:
#
#   chunk  v5e         v5p         v6e         tpu7x
#   128    78 / 236    44 / 126    66 / 196    60 / 194    smallest decay matrix per token
#   256    88 / 251    49 / 130    73 / 198    66 / 196    half the saved states: 64 MiB less; use it if memory is short
#
# 16 heads per block cost 12 % more on v5p, because the scores and masks of a chunk are computed once per block. 64 heads save 3 %, but give
# only one block for b=1, so one of the two cores of v5p is idle.
_CHUNK = 128
_MOST_HEADS = 32
# VMEM has 64 MiB on TPU7x and 128 MiB on the other chips. The 8B shape uses 14 MiB, and 27 MiB in float32.
_VMEM_LIMIT = 48 * 2**20


class Blocks(NamedTuple):
    """Block sizes."""

    chunk: int
    """Tokens per chunk."""
    heads: int
    """Heads per grid step."""
    unroll: int
    """Heads that the compiler schedules together; a divisor of `heads`."""


def choose_blocks(b: int, h: int, g: int, chunk_size: int | None) -> Blocks:
    """Choose the block sizes for b rows of h heads in g groups.

    Raises:
        ImplementationError: The chunk size is not a multiple of 128.
    """
    chunk = chunk_size or _CHUNK
    if chunk % 128:
        raise ImplementationError(
            f"ssd: chunk_size={chunk} is not allowed with pallas_tpu: it must be a multiple of 128, the lanes of a register"
        )
    group = h // g
    # A block has heads of one group. There are at least two blocks, because v4 and v5p distribute them to two cores.
    most = min(_MOST_HEADS, group if b * g > 1 else max(group // 2, 1))
    divisors = [d for d in range(1, most + 1) if group % d == 0]
    # Eight heads fill the sublanes of a register.
    heads = max([d for d in divisors if d % 8 == 0], default=max(d for d in divisors if d <= 8))
    return Blocks(chunk, heads, math.gcd(heads, 8) if heads > 8 else heads)


def ssd_pallas_tpu(
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
    """Chunked scan in one kernel, with sums, decays and states in float32.

    Args:
        x, dt, A, B, C, D, initial_state, interpret: As for `api.ssd`; dt must be 0 at padding.
        ordinals: `segments.segment_ordinals` of the row, or None for one document per row.
        chunk_size: Tokens per chunk, a multiple of 128; None: 128.

    Raises:
        ImplementationError: x is neither bfloat16 nor float32, or the chunk size is not a multiple of 128.
    """
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ImplementationError(f"ssd: x has dtype {x.dtype}: pallas_tpu supports bfloat16 and float32")
    b, t, h = x.shape[:3]
    blocks = choose_blocks(b, h, B.shape[2], chunk_size)
    pad = -t % blocks.chunk

    def padded(v, mode="constant"):
        # Padding at the end has dt = 0 and does not change the state.
        return pad_tokens(v, 0, pad, mode) if pad else v

    y, state = _scan(
        jnp.swapaxes(padded(x), 1, 2),
        jnp.moveaxis(padded(dt), 1, 2),
        A,
        jnp.swapaxes(padded(B.astype(x.dtype)), 1, 2),
        jnp.swapaxes(padded(C.astype(x.dtype)), 1, 2),
        D,
        None if ordinals is None else padded(ordinals, "edge"),
        jnp.swapaxes(initial_state, 2, 3),
        blocks,
        interpret,
    )
    return jnp.swapaxes(y, 1, 2)[:, :t], jnp.swapaxes(state, 2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8, 9))
def _scan(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret):
    """Scan with x [b,h,t,p], dt [b,h,t], B and C [b,g,t,n] and initial_state [b,h,n,p]; y and the final state have the same layouts."""
    return _forward(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret, save=False)


def _save(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret):
    y, state, entering = _forward(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret, save=True)
    return (y, state), (x, dt, A, B, C, D, ordinals, entering)


def _backward(blocks, interpret, saved, cotangents):
    x, dt, A, B, C, D, ordinals, entering = saved
    dy, d_final = cotangents
    b, h, t, p = x.shape
    g, n = B.shape[1], B.shape[3]
    specs = _Specs(x.shape, B.shape, blocks, reverse=True)
    f32, count = jnp.float32, specs.blocks
    q, heads = blocks.chunk, blocks.heads
    segments = _segment_rows(ordinals, q)
    per_token = pltpu.VMEM((heads, q), f32)
    square = pltpu.VMEM((q, q), f32)
    dx, ddt, dA, dD, dB, dC, d_initial = _call(
        functools.partial(backward_kernel, unroll=blocks.unroll, segmented=ordinals is not None),
        "ssd_backward",
        specs,
        inputs=[
            (x, specs.tokens),
            (dy.astype(x.dtype), specs.tokens),
            (specs.split(dt), specs.rows),
            (specs.split(A[:, None], axis=0), specs.per_head(1)),
            (specs.split(jnp.broadcast_to(D[:, None], (h, p)), axis=0), specs.per_head(p)),
            (B, specs.group),
            (jnp.swapaxes(B, 2, 3), specs.group_rows),
            (jnp.swapaxes(C, 2, 3), specs.group_rows),
            *([] if segments is None else [(segments, specs.segments)]),
            (entering, specs.entering),
            (d_final, specs.state),
        ],
        outputs=[
            ((b, h, t, p), x.dtype, specs.tokens),
            ((b, count, heads, t), f32, specs.rows),
            ((b, count, heads, q), f32, specs.sums),
            ((b, count, heads, q), f32, specs.sums),
            ((b, count, n, t), f32, specs.block_rows),
            ((b, count, n, t), f32, specs.block_rows),
            ((b, h, n, p), f32, specs.state),
        ],
        scratch=[
            *([per_token] * 3),
            pltpu.VMEM((heads, p), f32),
            *([per_token] * 4),
            pltpu.VMEM((heads, p), f32),
            *([square] * 4),
            pltpu.VMEM((2, q, q), f32),
            pltpu.VMEM((2, 2 * n, q), f32),
            pltpu.VMEM((2, q, q), x.dtype),
        ],
        flops=2 * b * h * t * (2 * q * p + 5 * n * p),
        transcendentals=b * h * t * q,
        interpret=interpret,
    )

    def of_group(v):
        """Sum [b,blocks,n,t] over the blocks of each group to [b,g,t,n]."""
        return jnp.swapaxes(v.reshape(b, g, -1, n, t).sum(2), 2, 3)

    return (
        dx,
        ddt.reshape(b, h, t),
        dA.sum((0, 3)).reshape(h),
        of_group(dB).astype(B.dtype),
        of_group(dC).astype(C.dtype),
        dD.sum((0, 3)).reshape(h),
        None,
        d_initial,
    )


_scan.defvjp(_save, _backward)


def _forward(x, dt, A, B, C, D, ordinals, initial_state, blocks, interpret, *, save):
    b, h, t, p = x.shape
    n = B.shape[3]
    specs = _Specs(x.shape, B.shape, blocks, reverse=False)
    f32, q = jnp.float32, blocks.chunk
    segments = _segment_rows(ordinals, q)
    return _call(
        functools.partial(forward_kernel, unroll=blocks.unroll, segmented=ordinals is not None, save=save),
        "ssd_forward",
        specs,
        inputs=[
            (x, specs.tokens),
            (specs.split(dt), specs.rows),
            (specs.split(A[:, None], axis=0), specs.per_head(1)),
            (specs.split(jnp.broadcast_to(D[:, None], (h, p)), axis=0), specs.per_head(p)),
            (jnp.swapaxes(B, 2, 3), specs.group_rows),
            (C, specs.group),
            *([] if segments is None else [(segments, specs.segments)]),
            (initial_state, specs.state),
        ],
        outputs=[
            ((b, h, t, p), x.dtype, specs.tokens),
            ((b, h, n, p), f32, specs.state),
            *([((b, t // q, h, n, p), f32, specs.entering)] if save else []),
        ],
        scratch=[
            pltpu.VMEM((blocks.heads, q), f32),
            pltpu.VMEM((blocks.heads, q), f32),
            pltpu.VMEM((blocks.heads, p), f32),
            pltpu.VMEM((q, q), f32),
            pltpu.VMEM((q, n), f32),
        ],
        flops=2 * b * h * t * (q * p + 2 * n * p),
        transcendentals=b * h * t * (q + n),
        interpret=interpret,
    )


def _segment_rows(ordinals, chunk):
    """Return [b,2,t]: the segment of each token, and of the entering state of its chunk. float32, which transposes well on TPU."""
    if ordinals is None:
        return None
    before = jnp.pad(ordinals[:, chunk - 1 : -1 : chunk], [(0, 0), (1, 0)])  # The first segment of a row is number 0.
    return jnp.stack([ordinals, jnp.repeat(before, chunk, axis=1)], axis=1).astype(jnp.float32)


class _Specs:
    """The grid and the block specs of both kernels."""

    def __init__(self, x_shape, B_shape, blocks, *, reverse):
        b, h, t, p = x_shape
        g, n = B_shape[1], B_shape[3]
        q, heads = blocks.chunk, blocks.heads
        chunks = t // q
        self.heads, self.blocks = heads, h // heads
        self.grid = (b, self.blocks, chunks)
        blocks_a_group = self.blocks // g

        def c(chunk):
            return chunks - 1 - chunk if reverse else chunk

        def group(j):
            # lax.div, because // needs a device, and ahead-of-time compilation may have none.
            return lax.div(j, blocks_a_group)

        self.tokens = pl.BlockSpec((1, heads, q, p), lambda i, j, k: (i, j, c(k), 0))
        self.rows = pl.BlockSpec((1, 1, heads, q), lambda i, j, k: (i, j, 0, c(k)))
        self.group = pl.BlockSpec((1, 1, q, n), lambda i, j, k: (i, group(j), c(k), 0))
        self.group_rows = pl.BlockSpec((1, 1, n, q), lambda i, j, k: (i, group(j), 0, c(k)))
        self.block_rows = pl.BlockSpec((1, 1, n, q), lambda i, j, k: (i, j, 0, c(k)))
        self.segments = pl.BlockSpec((1, 2, q), lambda i, j, k: (i, 0, c(k)))
        self.state = pl.BlockSpec((1, heads, n, p), lambda i, j, k: (i, j, 0, 0))
        self.entering = pl.BlockSpec((1, 1, heads, n, p), lambda i, j, k: (i, c(k), j, 0, 0))
        self.sums = pl.BlockSpec((1, 1, heads, q), lambda i, j, k: (i, j, 0, 0))

    def per_head(self, width):
        return pl.BlockSpec((1, self.heads, width), lambda i, j, k: (j, 0, 0))

    def split(self, v, axis=1):
        """Split the heads into blocks and heads of a block: the block of an axis must be the whole axis or a multiple of 8."""
        return v.reshape(*v.shape[:axis], self.blocks, self.heads, *v.shape[axis + 1 :])


def _call(kernel, name, specs, *, inputs, outputs, scratch, flops, transcendentals, interpret):
    arrays, in_specs = zip(*inputs, strict=True)
    # Inside shard_map, an output varies over the mesh axes over which any input varies.
    varying = frozenset().union(*(getattr(jax.typeof(a), "vma", ()) for a in arrays))
    more = {"vma": varying} if varying else {}
    out_shapes = [jax.ShapeDtypeStruct(shape, dtype, **more) for shape, dtype, _ in outputs]
    return pl.pallas_call(
        kernel,
        grid=specs.grid,
        in_specs=in_specs,
        out_specs=[spec for _, _, spec in outputs],
        out_shape=out_shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            transcendentals=transcendentals,
            bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in (*arrays, *out_shapes)),
        ),
        interpret=interpret,
        name=name,
    )(*arrays)
