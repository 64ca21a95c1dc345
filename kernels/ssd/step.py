"""One token of the selective scan, for decoding.

XLA compiles the convolution before it, this function and the gate after it to the same fifteen operations when they are one function. On
CPU, `mamba_step` computes them in C++ instead.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plamo2_kernels.precision import product_precision
from plamo2_kernels.ssd.decay import log_decay


def ssd_step(
    x: Float[Array, "b h p"],
    dt: Float[Array, "b h"],
    A: Float[Array, " h"],
    B: Float[Array, "b g n"],
    C: Float[Array, "b g n"],
    D: Float[Array, " h"],
    state: Float[Array, "b h p n"],
    continues: Bool[Array, " b"] | None = None,
) -> tuple[Float[Array, "b h p"], Float[Array, "b h p n"]]:
    """Compute S' = exp(dt A) S + (dt x) ⊗ B and y = S' C + D x. The state keeps its dtype, and y has the dtype of x.

    S is zero for rows that do not continue. S' C is computed as exp(dt A) (S C) + (B · C) dt x, so that y does not depend on the new
    state, which is then written only once.
    """
    b, h, p = x.shape
    g = B.shape[1]
    dtype = state.dtype
    dt, grouped = dt.astype(dtype), (b, g, h // g)
    B, C = B.astype(dtype), C.astype(dtype)
    decay, dx = jnp.exp(log_decay(dt, A))[..., None], x * dt[..., None]
    if continues is not None:
        state = jnp.where(continues.reshape(b, 1, 1, 1), state, 0)
    update = dx.reshape(*grouped, p)[..., None] * B[:, :, None, None, :]
    state = state * decay[..., None] + update.reshape(state.shape)
    read = jnp.einsum(
        "bgupn,bgn->bgup", state.reshape(*grouped, p, -1), C, precision=product_precision(x.dtype)
    ).reshape(x.shape)
    return (read + D[:, None] * x).astype(x.dtype), state
