"""The product of few rows with a matrix of int4 in groups on TPU: a hand-written Pallas kernel.

XLA multiplies every weight by the scale of its group before the product, which takes several times as long as reading the matrix. Here the
matrix unit multiplies plain integers, and the scales multiply the sums of the groups. There are fewer sums than weights:

    y[r, n] = Σ_g scales[n, g] (Σ_{k in g} x[r, k] values[n, k])

A tile of 128 inputs, the width of a register, is one product. If it has several groups, x is spread to a matrix of (group, row) pairs,
which holds x[r] in the inputs of group g and 0 elsewhere.

Values are unpacked with bits: eight rows of int4 share a row of int32. A half of 16 bits with the bits 0x4300 | (v + 8) is the bfloat16
number 136 + v. So a shift, an and, and an exclusive or make a register of bfloat16, whose rows are every fourth row of 64. The product of x
with 136 is subtracted from the sums. It has the same terms, so only rounding errors of float32 remain. Scales are brought into the order of
the unpacked rows, and results into the order of the outputs, by exact products with a permutation.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

MOST_ROWS = 64
"""Largest number of rows of the kernel."""
_LANES = 128
# Rows of a bfloat16 register.
_LEAST_ROWS = 16
# Bytes of int4 of a block of outputs, and its most outputs, whose sums stay in registers.
_BLOCK_BYTES, _MOST_OUTPUTS = 1 << 20, 512
_OFFSET = 136.0
# Tiles that the compiler schedules together.
_UNROLL = 16
_VMEM_LIMIT = 48 * 2**20


def why_not(x: Array, values: Array, scales: Array, zero_points: Array | None, activations: str | None) -> str | None:
    """Return why the kernel cannot compute a product of these shapes and dtypes, or None."""
    rows, k = x.shape
    groups = scales.shape[1]
    if x.dtype != jnp.bfloat16 or values.dtype != jnp.int4:
        return f"it multiplies bfloat16 by int4, not {x.dtype} by {values.dtype}"
    if activations is not None or zero_points is not None:
        return "it has no quantized activations and no zero points"
    if rows > MOST_ROWS:
        return f"it has at most {MOST_ROWS} rows, not {rows}"
    if groups == 1 or k // groups not in (32, 64, 128) or k % _LANES:
        return f"it has groups of 32, 64 or 128 inputs, in multiples of {_LANES} inputs, not {groups} of {k} inputs"
    return None


@functools.partial(jax.jit, static_argnames="interpret")
def pallas_product(
    x: Float[Array, "rows k"],
    values: Int[Array, "n k"],
    scales: Float[Array, "n groups"],
    *,
    interpret: Any = False,
) -> Float[Array, "rows n"]:
    """Return x Wᵀ for W = values · scales in float32. `why_not` must have returned None.

    Args:
        x: Activations, bfloat16.
        values: int4.
        scales: Scales of the groups.
        interpret: As for `pl.pallas_call`.
    """
    rows, (n, k), groups = x.shape[0], values.shape, scales.shape[1]
    padded = max(_LEAST_ROWS, 1 << (rows - 1).bit_length())
    most = min(_MOST_OUTPUTS, max(_LANES, _BLOCK_BYTES * 2 // k // _LANES * _LANES))
    # The last block may go past the end; what it computes there is not stored.
    outputs = min(most, -(-n // _LANES) * _LANES)
    tiles, pairs = k // _LANES, _LANES * groups // k * padded
    y = pl.pallas_call(
        functools.partial(_kernel, rows=padded, size=k // groups, n=n),
        grid=(pl.cdiv(n, outputs),),
        in_specs=[
            pl.BlockSpec((padded, k), lambda i: (0, 0)),
            pl.BlockSpec((outputs, k), lambda i: (i, 0)),
            pl.BlockSpec((groups, outputs), lambda i: (0, i)),
        ],
        out_specs=pl.BlockSpec((padded, outputs), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct((padded, n), jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((tiles, pairs, _LANES), jnp.bfloat16),
            pltpu.VMEM((tiles, pairs, _LANES), jnp.float32),
            pltpu.VMEM((groups, outputs), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=_VMEM_LIMIT),
        interpret=interpret,
        # XLA stores narrow arrays with their long axis last, so the transposition is free.
    )(jnp.pad(x, ((0, padded - rows), (0, 0))), values, scales.astype(jnp.float32).T)
    return y[:rows]


def _kernel(
    x_ref, values_ref, scales_ref, y_ref, spread_ref, offsets_ref, ordered_ref, *, rows: int, size: int, n: int
) -> None:
    """Compute one block of outputs, with groups of `size` inputs.

    Scratch: x spread to (group, row) pairs [tiles, pairs, 128] and 136 times the sums of the groups [tiles, pairs, 128], which stay for all
    outputs; the scales in the order of the unpacked rows [groups, outputs].
    """
    tiles, outputs = spread_ref.shape[0], values_ref.shape[0]
    in_tile = _LANES // size

    @pl.when(pl.program_id(0) == 0)
    def _():
        group = lax.div(lax.broadcasted_iota(jnp.int32, (rows, _LANES), 1), size)
        for tile in range(tiles):
            x = x_ref[:, tile * _LANES : (tile + 1) * _LANES].astype(jnp.float32)
            spread = jnp.concatenate([jnp.where(group == g, x, 0).astype(jnp.bfloat16) for g in range(in_tile)])
            spread_ref[tile] = spread
            offsets_ref[tile] = _dot(spread, jnp.full((_LANES, _LANES), _OFFSET, jnp.bfloat16))

    row, lane = (lax.broadcasted_iota(jnp.int32, (_LANES, _LANES), axis) for axis in (0, 1))
    # Lane 64 a + 16 i + p of the sums is output 64 a + 4 p + i.
    source = (lane & 64) | ((lane & 15) << 2) | (lax.shift_right_logical(lane, 4) & 3)
    permutation = (row == source).astype(jnp.float32)
    for start in range(0, outputs, _LANES):
        scales = scales_ref[:, pl.ds(start, _LANES)]
        if n % _LANES:
            # Memory past the end may hold NaN, which the product would spread.
            output = lax.broadcasted_iota(jnp.int32, scales.shape, 1) + (pl.program_id(0) * outputs + start)
            scales = jnp.where(output < n, scales, 0)
        ordered_ref[:, pl.ds(start, _LANES)] = _exact(scales, permutation, 0)

    def some(tile, totals):
        packed = pltpu.bitcast(values_ref[:, pl.ds(pl.multiple_of(tile * _LANES, _LANES), _LANES)], jnp.int32)
        # Values i and i + 4 of eight, in the two halves of 32 bits.
        bits = [(lax.shift_right_logical(packed, 4 * i) & 0x000F000F) ^ 0x43084308 for i in range(4)]
        parts = [pltpu.bitcast(each[a : a + 8], jnp.bfloat16) for a in range(0, outputs // 8, 8) for each in bits]
        offsets = jnp.concatenate([offsets_ref[tile]] * (outputs // _LANES), axis=1)
        sums = _dot(spread_ref[tile], jnp.concatenate(parts)) - offsets
        for g in range(in_tile):
            totals += sums[g * rows : (g + 1) * rows] * ordered_ref[pl.ds(tile * in_tile + g, 1), :]
        return totals

    unroll = math.gcd(tiles, _UNROLL)
    totals = lax.fori_loop(0, tiles, some, jnp.zeros((rows, outputs), jnp.float32), unroll=unroll)
    for start in range(0, outputs, _LANES):
        y_ref[:, pl.ds(start, _LANES)] = _exact(totals[:, start : start + _LANES], permutation, 1)


def _dot(a: Float[Array, "m k"], b: Float[Array, "n k"]) -> Float[Array, "m n"]:
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _exact(a: Float[Array, "m 128"], permutation: Float[Array, "128 128"], axis: int) -> Float[Array, "m 128"]:
    """Return a permutation of the columns of a matrix, or with axis=1 the inverse permutation."""
    return lax.dot_general(
        a,
        permutation,
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
