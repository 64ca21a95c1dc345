"""Products whose operands are rounded to 8-bit floats, forward and backward, for training (arXiv:2209.05433).

The forward operands are float8_e4m3fn, the gradients that enter a product are float8_e5m2. Each tensor has one scale, which is computed
from its largest magnitude in the same step (current scaling). Scales are powers of two, so multiplying by them rounds nothing.

XLA multiplies 8-bit floats natively where the hardware can (TPU7x; NVIDIA GPUs since Hopper, by cuBLASLt), and casts them up elsewhere.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FORWARD = jnp.float8_e4m3fn
"""dtype of activations and weights in a product: 3 bits of mantissa."""
GRADIENT = jnp.float8_e5m2
"""dtype of gradients in a product: 2 bits of mantissa, and 32 times the range of FORWARD."""


def float8_scale(x: Float[Array, "*x"], dtype: jnp.dtype, over: tuple[int, ...] | None = None) -> Float[Array, "*s"]:
    """Return the smallest power of two by which `x` can be divided without overflow of an 8-bit float.

    Args:
        x: Values.
        dtype: FORWARD or GRADIENT.
        over: Axes that share a scale; None: all.

    Returns:
        Scales in float32 without these axes. A tensor of zeros has the scale 1.
    """
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=over).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(largest / float(jnp.finfo(dtype).max), jnp.uint32)
    # Adding the largest mantissa carries into the exponent unless the mantissa is 0. Numbers below the normal ones become the smallest.
    bits = (bits + jnp.uint32(0x7FFFFF)) & jnp.uint32(0x7F800000)
    return jnp.where(largest == 0, 1, jax.lax.bitcast_convert_type(bits, jnp.float32))


def float8_product(
    x: Float[Array, "*x"],
    weight: Float[Array, "*w"],
    weight_scale: Float[Array, ""],
    contracted: tuple[tuple[int, ...], tuple[int, ...]],
) -> Float[Array, "*y"]:
    """Multiply activations by a weight in 8-bit floats. Both products of the backward pass are in 8-bit floats too.

    Args:
        x: Activations, float32 or bfloat16.
        weight: Weight, float32.
        weight_scale: `float8_scale` of the weight.
        contracted: Axes of `x`, and of `weight`, that the product sums over, pairwise.

    Returns:
        The product in the dtype of `x`: first the other axes of `x`, then those of `weight`. The gradient for `weight` is computed in the
        dtype of `x` and returned in float32.
    """
    return _product(contracted, x, weight, weight_scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(contracted, x, weight, weight_scale):
    return _forward(contracted, x, weight, weight_scale)[0]


def _forward(contracted, x, weight, weight_scale):
    x_scale = float8_scale(x, FORWARD)
    x8, w8 = _round(x, x_scale, FORWARD), _round(weight, weight_scale, FORWARD)
    y = _dot(x8, w8, contracted, x.dtype, x_scale * weight_scale)
    # The rounded operands, one byte a value, are what the backward pass needs.
    return y, (x8, x_scale, w8, weight_scale)


def _backward(contracted, saved, dy):
    x8, x_scale, w8, w_scale = saved
    of_x, of_w = contracted
    rows, outputs = (_others(a.ndim, axes) for a, axes in ((x8, of_x), (w8, of_w)))
    dy_scale = float8_scale(dy, GRADIENT)
    dy8 = _round(dy, dy_scale, GRADIENT)
    dy_rows, dy_outputs = tuple(range(len(rows))), tuple(range(len(rows), dy.ndim))
    dx = _dot(dy8, w8, (dy_outputs, outputs), dy.dtype, dy_scale * w_scale)
    # dx has the rows, and then the inputs in the weight's order.
    sources = [*rows, *(x_axis for _, x_axis in sorted(zip(of_w, of_x, strict=True)))]
    dx = dx.transpose([sources.index(axis) for axis in range(x8.ndim)])
    dw = _dot(x8, dy8, (rows, dy_rows), dy.dtype, x_scale * dy_scale)
    # dw has the inputs in the order of x, and then the outputs.
    sources = [*(w_axis for _, w_axis in sorted(zip(of_x, of_w, strict=True))), *outputs]
    dw = dw.transpose([sources.index(axis) for axis in range(w8.ndim)])
    return dx, dw.astype(jnp.float32), jnp.zeros_like(w_scale)


_product.defvjp(_forward, _backward)


def _others(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in axes)


def _round(x: Array, scale: Array, dtype: jnp.dtype) -> Array:
    return (x.astype(jnp.float32) * (1 / scale)).astype(dtype)


def _dot(a: Array, b: Array, contracted: tuple, dtype: jnp.dtype, scale: Array) -> Array:
    """Multiply 8-bit floats. The unscaled sums fit into bfloat16: a product is at most 2^25 in magnitude."""
    y = jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=dtype)
    return y * scale.astype(dtype)
