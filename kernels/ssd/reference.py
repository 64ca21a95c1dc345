"""The selective scan by its definition: one `lax.scan` step per token.

    S_t = exp(dt_t A) S_{t-1} + (dt_t x_t) ⊗ B_t        S [h,p,n]
    y_t = S_t C_t + D x_t

(Mamba-2, arXiv:2405.21060, section 3; B and C are shared by the heads of a group.) Every other implementation is tested against this one.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.ssd.decay import log_decay


def ssd_reference(
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    ordinals: Int[Array, "b t"] | None,
    initial_state: Float[Array, "b h p n"],
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"]]:
    """Return the sequential scan, computed in the dtype of `initial_state`.

    Args:
        x, dt, A, B, C, D, initial_state: As for `api.ssd`; dt must be 0 at padding.
        ordinals: `segments.segment_ordinals` of the row, or None for one document per row.
    """
    dtype = initial_state.dtype
    heads_per_group = x.shape[2] // B.shape[2]
    keep = jnp.ones(dt.shape[:2], dtype)
    if ordinals is not None:
        keep = keep.at[:, 1:].set((ordinals[:, 1:] == ordinals[:, :-1]).astype(dtype))

    def step(state, token):
        x_t, dt_t, B_t, C_t, keep_t = token
        B_t, C_t = (jnp.repeat(v, heads_per_group, axis=1) for v in (B_t, C_t))
        decay = jnp.exp(log_decay(dt_t, A)) * keep_t[:, None]
        state = decay[..., None, None] * state + jnp.einsum("bh,bhp,bhn->bhpn", dt_t, x_t, B_t)
        return state, jnp.einsum("bhpn,bhn->bhp", state, C_t) + D[:, None] * x_t

    tokens = tuple(jnp.moveaxis(v.astype(dtype), 1, 0) for v in (x, dt, B, C, keep))
    final_state, y = lax.scan(step, initial_state, tokens)
    return jnp.moveaxis(y, 0, 1).astype(x.dtype), final_state
