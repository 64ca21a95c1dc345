"""Scales and rounding of matrices [rows, columns]. A row is an output, and groups of its columns, the inputs, share a scale."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Kind = Literal["int8", "int4", "float8"]
"""dtypes of quantized values. float8 is float8_e4m3fn."""
DTYPES = {"int8": jnp.int8, "int4": jnp.int4, "float8": jnp.float8_e4m3fn}
LARGEST = {"int8": 127, "int4": 7, "float8": 448}
"""Value that the largest magnitude of a group becomes without a search."""
_SMALLEST = {"int8": -127, "int4": -8, "float8": -448}
# Clipping below 0.6 of the largest magnitude was never chosen on normal, Laplace or trained matrices.
_STEPS, _LEAST = 41, 0.6


def round_values(numbers: Float[Array, "z c"], kind: Kind) -> Float[Array, "z c"]:
    """Round numbers, which are weights divided by their scales, to the values of a dtype. The result is float32."""
    numbers = jnp.clip(numbers, _SMALLEST[kind], LARGEST[kind])
    return numbers.astype(DTYPES[kind]).astype(jnp.float32) if kind == "float8" else jnp.round(numbers)


def spread(scales: Float[Array, "z groups"], columns: int) -> Float[Array, "z c"]:
    """Return the scale of each column."""
    return jnp.repeat(scales, columns // scales.shape[1], axis=1)


@functools.partial(jax.jit, static_argnames=("groups", "kind"))
def absmax_scales(weight: Float[Array, "z c"], groups: int, kind: Kind) -> Float[Array, "z groups"]:
    """Return the scales with which the largest magnitude of each group becomes the largest value."""
    most = jnp.max(jnp.abs(weight.reshape(weight.shape[0], groups, -1)), axis=-1)
    return jnp.where(most > 0, most / LARGEST[kind], 1)


@functools.partial(jax.jit, static_argnames=("groups", "kind"))
def searched_scales(
    weight: Float[Array, "z c"], groups: int, kind: Kind, importance: Float[Array, " c"]
) -> Float[Array, "z groups"]:
    """Return the scales with the smallest squared error, weighted by column. Scales smaller than the result of `absmax_scales` clip.

    Args:
        weight: Matrix to quantize.
        groups: Number of groups in a row.
        kind: dtype of the values.
        importance: Weight of each column in the error, such as the mean square of its input.
    """
    first = absmax_scales(weight, groups, kind)
    grouped = weight.reshape(weight.shape[0], groups, -1)
    weights = importance.reshape(groups, -1)

    def error(scales: Float[Array, "z groups"]) -> Float[Array, "z groups"]:
        numbers = grouped / scales[..., None]
        off = round_values(numbers.reshape(weight.shape), kind).reshape(grouped.shape) * scales[..., None] - grouped
        return jnp.sum(jnp.square(off) * weights, axis=-1)

    def step(i: int, best: tuple) -> tuple:
        scales, least = best
        tried = first * (1 - (1 - _LEAST) * i / (_STEPS - 1))
        found = error(tried)
        return jnp.where(found < least, tried, scales), jnp.minimum(found, least)

    return jax.lax.fori_loop(1, _STEPS, step, (first, error(first)))[0]


@functools.partial(jax.jit, static_argnames="kind")
def round_to_nearest(weight: Float[Array, "z c"], scales: Float[Array, "z groups"], kind: Kind) -> Float[Array, "z c"]:
    """Return the nearest values, as float32."""
    return round_values(weight / spread(scales, weight.shape[1]), kind)


@jax.jit
def output_error(
    weight: Float[Array, "z c"], rounded: Float[Array, "z c"], hessian: Float[Array, "c c"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean squares of the products with W' - W and with W. H is the second moment X Xᵀ of the inputs."""

    def square(matrix: Float[Array, "z c"]) -> Float[Array, ""]:
        return jnp.sum(jnp.dot(matrix, hessian, precision="highest") * matrix)

    return square(rounded - weight), square(weight)
