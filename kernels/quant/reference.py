"""The product with the whole matrix in float32 (float64 if x is float64)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_kernels.precision import product_precision

MAX_FLOAT8 = 448.0
"""Largest finite value of float8_e4m3fn."""


def dequantize(
    values: Int[Array, "n k"] | Float[Array, "n k"],
    scales: Float[Array, "n groups"],
    zero_points: Int[Array, "n groups"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "n k"]:
    """Return (values - zero points) · scales in `dtype`."""
    grouped = values.astype(scales.dtype).reshape(*scales.shape, -1)
    if zero_points is not None:
        grouped = grouped - zero_points[..., None].astype(grouped.dtype)
    return (grouped * scales[..., None]).reshape(values.shape).astype(dtype)


def quantize_rows(x: Float[Array, "rows k"], activations: str) -> tuple[Array, Float[Array, "rows 1"]]:
    """Return rows as int8 or float8_e4m3fn values and their scales, so that x is about values · scales."""
    most = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    largest = MAX_FLOAT8 if activations == "float8" else 127
    scales = jnp.where(most > 0, most / largest, 1)
    values = jnp.clip(x / scales, -largest, largest)
    return (values.astype(jnp.float8_e4m3fn) if activations == "float8" else jnp.round(values).astype(jnp.int8)), scales


def reference_product(
    x: Float[Array, "rows k"],
    values: Int[Array, "n k"] | Float[Array, "n k"],
    scales: Float[Array, "n groups"],
    zero_points: Int[Array, "n groups"] | None,
    activations: str | None,
) -> Float[Array, "rows n"]:
    """Compute `quantized_product`."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x = x.astype(dtype)
    if activations is not None:
        rounded, of_rows = quantize_rows(x, activations)
        x = rounded.astype(dtype) * of_rows
    weight = dequantize(values, scales.astype(dtype), zero_points, dtype)
    return jnp.einsum("rk,nk->rn", x, weight, precision=product_precision(dtype))
