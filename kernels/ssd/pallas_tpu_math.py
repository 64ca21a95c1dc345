"""Shared functions of the forward and backward TPU kernels of the scan: products, running sums and masks.

Shapes: q tokens of a chunk, j heads of a block. For pairs of tokens, [q,s] has the axis of the later token first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from plamo2_kernels.ssd.decay import LEAST_LOG2_DECAY

LOG2_E = math.log2(math.e)

# Contracting dimensions of a product of matrices, as they are stored: N as is, T transposed.
NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))


def dot(a: Array, b: Array, dimensions: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """Return a matrix product with float32 sums: exact products for bfloat16, full float32 products for float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, (dimensions, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def masked_sum(
    values: Float[Array, "j q"], mask: Float[Array, "q q"], dimensions: tuple[tuple[int, ...], tuple[int, ...]]
) -> Float[Array, "j q"]:
    """Return `values` times a matrix of zeros and ones, with float32 accuracy.

    The mask is exact in bfloat16, so three bfloat16 parts of each value need one pass each. A float32 product takes six passes.
    """
    total, rest = jnp.zeros(values.shape, jnp.float32), values
    for _ in range(3):
        part = rest.astype(jnp.bfloat16)
        total += lax.dot_general(part, mask, (dimensions, ((), ())), preferred_element_type=jnp.float32)
        rest -= part.astype(jnp.float32)
    return total


def log_decays(dt: Float[Array, "j q"], A: Float[Array, "j 1"]) -> Float[Array, "j q"]:
    """Return log2 of each token's decay: `decay.log_decay` in base 2."""
    return jnp.maximum(dt * (A * LOG2_E), LEAST_LOG2_DECAY)


def decay(exponent: Array) -> Array:
    """Return 2^exponent. Positive exponents occur only in pairs that are masked later; they are clamped so that they do not overflow."""
    return jnp.exp2(jnp.minimum(exponent, 0.0))


class Masks(NamedTuple):
    """Segment masks of the tokens of a chunk."""

    same: Bool[Array, "q q"] | None
    """Pairs in the same segment, symmetric; None if segments are not used."""
    enters: Bool[Array, "1 q"] | None
    """Tokens that see the entering state of the chunk."""
    leaves: Bool[Array, "1 q"] | None
    """Tokens that contribute to the state at the end of the chunk."""
    enters_column: Bool[Array, "q q"] | None
    """`enters` along sublanes, the same in every lane."""


def make_masks(segments: Float[Array, "2 q"] | None) -> Masks:
    """Build the masks from two rows: the segment of each token, and the segment of the entering state."""
    if segments is None:
        return Masks(None, None, None, None)
    q = segments.shape[-1]
    own, before = segments[:1], segments[1:]
    row = jnp.broadcast_to(own, (q, q))
    # To get a column, broadcast the row to a square and transpose it.
    column = row.T
    return Masks(row == column, own == before, own == own[:, -1:], column == jnp.broadcast_to(before, (q, q)))


def keep(mask: Array | None, values: Array) -> Array:
    """Return `values` where the mask is true, else 0; all values if the mask is None."""
    return values if mask is None else jnp.where(mask, values, 0.0)
