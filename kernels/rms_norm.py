"""RMS norm, with a C++ implementation for few rows on CPU: XLA adds the squares of a row one by one, in four loops."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from plamo2_kernels import native

# With more rows, XLA divides them over threads.
_MOST_ROWS = 256


def rms_norm(
    x: Float[Array, "*b d"],
    scale: Float[Array, "*s d"],
    epsilon: float,
    *,
    offset: float = 0.0,
    implementation: str = "xla",
) -> Float[Array, "*b d"]:
    """Return x / sqrt(mean(x²) + epsilon) · (offset + scale) over the last axis, in the dtype of x. The mean is in float32.

    Args:
        x: Activations.
        scale: Scales of the last axes of x.
        epsilon: Added to the mean.
        offset: Added to the scale.
        implementation: "ffi" and "auto" call C++ for few rows of float32 on CPU, if it can be compiled.
    """

    def by_xla(x, scale):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normal = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon)
        return normal.astype(x.dtype) * (offset + scale).astype(x.dtype)

    def by_ffi(x, scale):
        result = jax.ShapeDtypeStruct((x.size // scale.size, *scale.shape), x.dtype)
        settings = {"epsilon": np.float32(epsilon), "offset": np.float32(offset)}
        return native.call("plamo2_rms_norm", result, x.reshape(result.shape), scale, **settings).reshape(x.shape)

    few = math.prod(x.shape[:-1]) <= _MOST_ROWS and x.dtype == scale.dtype == jnp.float32
    if implementation not in ("auto", "ffi") or not few or jax.default_backend() != "cpu" or not native.is_available():
        return by_xla(x, scale)
    # A program for another platform may be made on this one.
    return jax.lax.platform_dependent(x, scale, cpu=by_ffi, default=by_xla)
