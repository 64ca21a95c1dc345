"""What the forward and the backward kernel of the scan on TPU share: products, running sums, masks.

Shapes: q tokens of a chunk, j heads of a block. Pairs of tokens are named by their axes: [q,s] has the later token's axis first.
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
    """A matrix product with float32 sums: exact products of bfloat16, full float32 products of float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, (dimensions, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def masked_sum(
    values: Float[Array, "j q"], mask: Float[Array, "q q"], dimensions: tuple[tuple[int, ...], tuple[int, ...]]
) -> Float[Array, "j q"]:
    """`values` times a matrix of zeros and ones, exact to float32.

    The mask is exact in bfloat16, so three bfloat16 parts of each value need one pass each, where a float32 product takes six.
    """
    total, rest = jnp.zeros(values.shape, jnp.float32), values
    for _ in range(3):
        part = rest.astype(jnp.bfloat16)
        total += lax.dot_general(part, mask, (dimensions, ((), ())), preferred_element_type=jnp.float32)
        rest -= part.astype(jnp.float32)
    return total


def log_decays(dt: Float[Array, "j q"], A: Float[Array, "j 1"]) -> Float[Array, "j q"]:
    """log2 of each token's decay: `decay.log_decay` in base 2."""
    return jnp.maximum(dt * (A * LOG2_E), LEAST_LOG2_DECAY)


def decay(exponent: Array) -> Array:
    """2^exponent; a positive exponent can only belong to a pair that a mask leaves out, and must not overflow before it does."""
    return jnp.exp2(jnp.minimum(exponent, 0.0))


class Masks(NamedTuple):
    """Which tokens of a chunk meet."""

    same: Bool[Array, "q q"] | None
    """Pairs of one segment; None where segments are not used. Symmetric."""
    enters: Bool[Array, "1 q"] | None
    """Tokens that see the state entering the chunk."""
    leaves: Bool[Array, "1 q"] | None
    """Tokens whose contribution is alive at the chunk's end."""
    enters_column: Bool[Array, "q q"] | None
    """`enters` along sublanes, the same in every lane."""


def make_masks(segments: Float[Array, "2 q"] | None) -> Masks:
    """Masks from the chunk's rows: each token's segment, and the segment that is alive before the chunk."""
    if segments is None:
        return Masks(None, None, None, None)
    q = segments.shape[-1]
    own, before = segments[:1], segments[1:]
    row = jnp.broadcast_to(own, (q, q))
    # A column is had by transposing a row that fills a square.
    column = row.T
    return Masks(row == column, own == before, own == own[:, -1:], column == jnp.broadcast_to(before, (q, q)))


def keep(mask: Array | None, values: Array) -> Array:
    """`values` where the mask holds, else 0; all of them without a mask."""
    return values if mask is None else jnp.where(mask, values, 0.0)
