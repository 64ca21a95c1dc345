"""The product as XLA operations.

On CPU, XLA would write a float copy of the whole matrix before each product. So int8 matrices with one scale for each output are multiplied
by int8 activations, for which XLA has a fast product of at least two rows. A row becomes two rows, x = s (256 high + low), which keep 16
bits of it and need a single pass over the weights. Other matrices are multiplied in blocks of outputs, and only a block is copied.

On accelerators, XLA fuses the conversion of the matrix with its product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_kernels.precision import product_precision
from plamo2_kernels.quant.reference import quantize_rows, reference_product

# Bytes of a block of outputs in float32.
_BLOCK_BYTES = 1 << 18
# With more rows, the product takes much longer than the copy of the matrix.
_FEW_ROWS = 64
_STEPS = 127 * 256


def xla_product(
    x: Float[Array, "rows k"],
    values: Int[Array, "n k"] | Float[Array, "n k"],
    scales: Float[Array, "n groups"],
    zero_points: Int[Array, "n groups"] | None,
    activations: str | None,
) -> Float[Array, "rows n"]:
    """Compute `quantized_product`."""
    arrays = [each for each in (x, values, scales, zero_points) if each is not None]

    def on(function):
        return lambda *arrays: function(*(arrays if len(arrays) == 4 else (*arrays, None)), activations)

    return jax.lax.platform_dependent(*arrays, cpu=on(_on_cpu), default=on(_on_accelerator))


def _on_accelerator(x, values, scales, zero_points, activations):
    """Multiply integers by integers if the activations are quantized, else convert the matrix to the dtype of the activations."""
    if activations is not None and zero_points is None and scales.shape[1] == 1 and values.dtype != jnp.int4:
        rounded, of_rows = quantize_rows(x.astype(jnp.float32), activations)
        if rounded.dtype == values.dtype:
            sums = _dot(rounded, values, jnp.int32 if activations == "int8" else jnp.float32)
            return sums.astype(jnp.float32) * of_rows * scales[:, 0]
    if activations is not None:
        rounded, of_rows = quantize_rows(x.astype(jnp.float32), activations)
        x = (rounded.astype(jnp.float32) * of_rows).astype(x.dtype)
    if scales.shape[1] == 1 and zero_points is None:
        # Scaling the sums takes fewer operations than scaling the weights.
        return _dot(x, values.astype(x.dtype), jnp.promote_types(x.dtype, jnp.float32)) * scales[:, 0]
    k = values.shape[1]
    numbers = values.astype(jnp.float32)
    if zero_points is not None:
        numbers -= _repeated(zero_points.astype(jnp.float32), k, x.dtype)
    matrix = (numbers * _repeated(scales.astype(jnp.float32), k, x.dtype)).astype(x.dtype)
    return _dot(x, matrix, jnp.promote_types(x.dtype, jnp.float32))


def _repeated(of_groups: Float[Array, "n groups"], k: int, dtype: jnp.dtype) -> Float[Array, "n k"]:
    """Return for each input the value of its group, in float32, with at least 16 bits.

    A TPU takes up to ten times as long to repeat values along the last axis as to multiply by a matrix of zeros and ones.
    """
    groups = of_groups.shape[1]
    if jnp.finfo(dtype).bits > 16:
        ones = jnp.repeat(jnp.eye(groups), k // groups, axis=1)
        return jnp.einsum("ng,gk->nk", of_groups, ones, precision=jax.lax.Precision.HIGHEST)
    high = of_groups.astype(jnp.bfloat16)
    low = (of_groups - high.astype(jnp.float32)).astype(jnp.bfloat16)
    ones = jnp.repeat(jnp.eye(groups, dtype=jnp.bfloat16), k // groups, axis=1)
    # Each sum has two terms: the upper and the lower bits of a value.
    both = jnp.concatenate([high, low], axis=1), jnp.concatenate([ones, ones])
    return jnp.einsum("ng,gk->nk", *both, preferred_element_type=jnp.float32)


def _on_cpu(x, values, scales, zero_points, activations):
    rows = x.shape[0]
    whole = values.dtype == jnp.int8 and scales.shape[1] == 1 and x.dtype != jnp.float64 and activations != "float8"
    if whole and (rows <= _FEW_ROWS or activations == "int8"):
        return _integer_rows(x.astype(jnp.float32), values, scales, zero_points, activations)
    if rows > _FEW_ROWS:
        return reference_product(x, values, scales, zero_points, activations)
    return _in_blocks(x, values, scales, zero_points, activations)


def _integer_rows(x, values, scales, zero_points, activations):
    rows = x.shape[0]
    if activations == "int8":
        parts, of_rows = quantize_rows(x, activations)
        whole = parts.astype(jnp.int32)
    else:
        most = jnp.max(jnp.abs(x), axis=1, keepdims=True)
        of_rows = jnp.where(most > 0, most / _STEPS, 1)
        whole = jnp.round(x / of_rows).astype(jnp.int32)
        high = (whole + 128) >> 8
        parts = jnp.concatenate([high, whole - 256 * high]).astype(jnp.int8)
    # XLA's fast product needs two rows.
    missing = max(0, 2 - parts.shape[0])
    sums = _dot(jnp.pad(parts, ((0, missing), (0, 0))), values, jnp.int32)
    if activations == "int8":
        sums = sums[:rows].astype(jnp.float32)
    else:
        sums = sums[:rows].astype(jnp.float32) * 256 + sums[rows:].astype(jnp.float32)
    if zero_points is not None:
        inputs = jnp.sum(whole, axis=1, keepdims=True).astype(jnp.float32)
        sums -= inputs * zero_points[:, 0].astype(jnp.float32)
    return sums * scales[:, 0] * of_rows


def _in_blocks(x, values, scales, zero_points, activations):
    n, k = values.shape
    size = max(1, min(n, _BLOCK_BYTES // (4 * k)))
    arrays = [each for each in (values, scales, zero_points) if each is not None]

    def block(i, made):
        # The last block may overlap the block before it.
        start = jnp.minimum(i * size, n - size)
        parts = [jax.lax.dynamic_slice_in_dim(each, start, size) for each in arrays]
        y = reference_product(x, *(parts if len(parts) == 3 else (*parts, None)), activations)
        return jax.lax.dynamic_update_slice_in_dim(made, y, start, axis=1)

    made = jnp.zeros((x.shape[0], n), jnp.promote_types(x.dtype, jnp.float32))
    return jax.lax.fori_loop(0, -(-n // size), block, made)


def _dot(x, values, dtype):
    precision = product_precision(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else None
    return jax.lax.dot_general(x, values, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=dtype)
