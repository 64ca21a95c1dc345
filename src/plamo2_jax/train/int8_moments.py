"""Moments of AdamW in 8 bits between updates, in blocks with one scale each, as in 8-bit optimizers (arXiv:2110.02861).

A value is stored as a code c, which means (c / 127)² · scale for the mean of gradients (with the sign of c), and (c / 255)⁴ · scale for the
mean of squared gradients. So small values of a block keep a small relative error, as with the lookup table of the paper, but a TPU computes
a power faster than it looks up a table. Codes are rounded stochastically: rounded to the nearest, a mean that changes by less than half a
step per update would not change at all.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_jax.model import axes

Layout = tuple[int, int]
"""The axis of a parameter that its moments are divided along, and the largest number of values in a block."""


class Blocks(NamedTuple):
    """The moments of all parameters: two trees with the structure of the parameters."""

    values: Any
    """Codes of the matrices, int8 or uint8, and the float32 moments of all other parameters, in the shape of the parameter."""
    scales: Any
    """Scale of each block, float32, in the shape of the parameter with blocks along one axis; 0, and not used, for moments in float32."""


@dataclasses.dataclass(frozen=True)
class Code:
    """An 8-bit code of magnitudes from 0 to 1: code c means (c / largest)^power."""

    dtype: type
    power: int

    @property
    def largest(self) -> int:
        """Largest code."""
        return jnp.iinfo(self.dtype).max

    @property
    def is_signed(self) -> bool:
        """Whether codes have a sign."""
        return bool(jnp.iinfo(self.dtype).min)

    def encode(self, x: Float[Array, "*x"], layout: Layout, step: Array) -> tuple[Array, Float[Array, "*s"]]:
        """Return the codes and scales of a moment. `step` seeds the rounding."""
        axis, blocks = layout[0], _split(x, layout)
        scales = jnp.max(jnp.abs(blocks), axis=axis + 1, keepdims=True)
        ratio = jnp.abs(blocks) / jnp.where(scales > 0, scales, 1)
        root = ratio
        for _ in range(self.power.bit_length() - 1):
            root = jnp.sqrt(root)
        low = jnp.clip(jnp.floor(self.largest * root), 0, self.largest - 1)
        below, above = self._decode(low), self._decode(low + 1)
        draws = _uniform(x.shape, step).reshape(blocks.shape)
        codes = low + (draws < (ratio - below) / (above - below))
        if self.is_signed:
            codes = codes * jnp.sign(blocks)
        else:
            # A squared gradient that became 0 would make the update of this parameter huge.
            codes = jnp.where(ratio > 0, jnp.maximum(codes, 1), 0)
        return codes.astype(self.dtype).reshape(x.shape), scales.squeeze(axis + 1)

    def decode(self, codes: Array, scales: Float[Array, "*s"], layout: Layout) -> Float[Array, "*x"]:
        """Return a moment in float32."""
        blocks = _split(codes.astype(jnp.float32), layout)
        values = self._decode(jnp.abs(blocks)) * jnp.expand_dims(scales, layout[0] + 1)
        return (values * jnp.sign(blocks)).reshape(codes.shape)

    def _decode(self, codes: Float[Array, "*c"]) -> Float[Array, "*c"]:
        return jax.lax.integer_pow(codes / self.largest, self.power)


MEAN = Code(jnp.int8, 2)
"""Code of the mean of gradients."""
MEAN_OF_SQUARES = Code(jnp.uint8, 4)
"""Code of the mean of squared gradients."""


def encode(code: Code, moments: Any, logical_axes: Any, step: Array) -> Blocks:
    """Store the moments of all parameters.

    Args:
        code: MEAN or MEAN_OF_SQUARES.
        moments: Tree of float32 arrays with the structure of the parameters.
        logical_axes: Tree of the axis names of each parameter.
        step: Number of the update, int32.
    """
    # optax finds the parameter trees of a state by initializing it with an empty node.
    if not jax.tree.leaves(moments):
        return Blocks(moments, moments)

    def one(names: axes.Axes, moment: Array) -> tuple[Array, Array]:
        layout = layout_of(names)
        return (moment, jnp.zeros((), jnp.float32)) if layout is None else code.encode(moment, layout, step)

    pairs = axes.map_with_axes(one, logical_axes, moments)
    return Blocks(*jax.tree.transpose(jax.tree.structure(moments), jax.tree.structure((0, 0)), pairs))


def decode(code: Code, blocks: Blocks, logical_axes: Any) -> Any:
    """Return the moments of all parameters in float32."""

    def one(names: axes.Axes, values: Array, scales: Array) -> Array:
        layout = layout_of(names)
        return values if layout is None else code.decode(values, scales, layout)

    return axes.map_with_axes(one, logical_axes, blocks.values, blocks.scales)


def layout_of(names: axes.Axes) -> Layout | None:
    """Return how the moments of a parameter with these axis names are divided; None: they stay in float32, as for all but matrices.

    Blocks lie along an axis that the sharding rules divide little: the last one except the vocabulary and the residual width. Embedding and
    head have no other axis: their blocks lie along the residual width and are shorter, so that many devices can hold whole blocks.
    """
    if not axes.is_matrix(names):
        return None
    allowed = [i for i, name in enumerate(names) if name not in (axes.EMBED, axes.VOCAB, axes.LAYERS, None)]
    return (allowed[-1], 256) if allowed else (names.index(axes.EMBED), 64)


def _split(x: Array, layout: Layout) -> Array:
    """Reshape the axis to blocks and the values of a block: the longest blocks that divide it."""
    axis, longest = layout
    size = x.shape[axis]
    length = next(n for n in range(min(size, longest), 0, -1) if size % n == 0)
    return x.reshape(*x.shape[:axis], size // length, length, *x.shape[axis + 1 :])


def _uniform(shape: tuple[int, ...], step: Array) -> Float[Array, "*x"]:
    """Return numbers in [0, 1) that depend on the index of a value and on the step: the finalizer of MurmurHash3.

    They do not depend on the sharding, and cost a few integer operations each.
    """
    step = step.astype(jnp.uint32)
    # The odd factor depends on the step, so that XLA does not compute the products once and keep an array of the size of the moment.
    strides = [jnp.uint32(math.prod(shape[i + 1 :]) % 2**32) * (2 * step + 1) for i in range(len(shape))]
    bits = step * jnp.uint32(0x9E3779B9)
    for i, stride in enumerate(strides):
        bits = bits + jax.lax.broadcasted_iota(jnp.uint32, shape, i) * stride
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    bits = bits ^ (bits >> 16)
    return (bits >> 8).astype(jnp.float32) * 2.0**-24
