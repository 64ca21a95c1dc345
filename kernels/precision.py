"""The precision of matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Return the precision for products of this dtype: full for float32 and wider, the hardware's default for narrower dtypes.

    By default a TPU multiplies float32 in bfloat16, and a GPU in TF32.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize >= 4 else None
