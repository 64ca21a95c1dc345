"""The product in C++ (native/source/integer_product.h): integers times integers, with float32 only for scales."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from plamo2_kernels import native

# Sums of so many products of 8 bits fit into 32 bits.
_MOST_INPUTS = 1 << 16
Matrix = tuple[Int[Array, "_ k"] | Float[Array, "_ k"], Float[Array, "_ _"], Int[Array, "_ _"] | None]
"""Values [n, k], scales [n, groups] and zero points [n, groups]. n and the number of groups may differ between matrices."""


def why_not(x: Array, values: Array, activations: str | None) -> str | None:
    """Return why the product cannot run in C++ on this platform and with these dtypes, or None."""
    if jax.default_backend() != "cpu":
        return f"it is for CPUs, not {jax.default_backend()}"
    if values.dtype not in (jnp.int8, jnp.int4):
        return f"it has no {values.dtype} matrices"
    if activations == "float8":
        return "it has no float8 activations"
    if x.dtype == jnp.float64:
        return "it has no float64 activations"
    if values.shape[1] > _MOST_INPUTS:
        return f"it has at most {_MOST_INPUTS} inputs, not {values.shape[1]}"
    if values.dtype == jnp.int4 and values.shape[1] % 2:
        return f"a row of int4 has an even number of inputs, not {values.shape[1]}"
    return None


def integer_products(
    x: Float[Array, "rows k"], matrices: Sequence[Matrix], activations: str | None
) -> tuple[Float[Array, "rows _"], ...]:
    """Compute `quantized_product` for each of several matrices with the same dtype of values."""
    arrays = [x.astype(jnp.float32)]
    for values, scales, zero_points in matrices:
        zeros = jnp.zeros((0, 0), jnp.int8) if zero_points is None else zero_points.astype(jnp.int8)
        arrays += [values, scales.astype(jnp.float32), zeros]
    results = [jax.ShapeDtypeStruct((x.shape[0], values.shape[0]), jnp.float32) for values, _, _ in matrices]
    parts = np.int64(2 if activations is None else 1)
    return tuple(native.call("plamo2_integers", results, *arrays, parts=parts))
