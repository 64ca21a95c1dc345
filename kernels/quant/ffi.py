"""The product in C++ (native/source/integer_product.h): integers times integers, with float32 only for scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from plamo2_kernels import native

# Sums of so many products of 8 bits fit into 32 bits.
_MOST_INPUTS = 1 << 16


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


def integer_product(
    x: Float[Array, "rows k"],
    values: Int[Array, "n k"],
    scales: Float[Array, "n groups"],
    zero_points: Int[Array, "n groups"] | None,
    activations: str | None,
) -> Float[Array, "rows n"]:
    """Compute `quantized_product`."""
    zeros = jnp.zeros((0, 0), jnp.int8) if zero_points is None else zero_points.astype(jnp.int8)
    result = jax.ShapeDtypeStruct((x.shape[0], values.shape[0]), jnp.float32)
    parts = np.int64(2 if activations is None else 1)
    return native.call(
        "plamo2_integers", result, x.astype(jnp.float32), values, scales.astype(jnp.float32), zeros, parts=parts
    )
