"""The selective scan in chunks, as batched matrix products for XLA (state-space duality, arXiv:2405.21060, section 6).

With a = dt A, cum its running sum inside a chunk (and segment) and S_in the state that enters the chunk,

    y_i    = Σ_{j≤i} exp(cum_i - cum_j) (C_i·B_j) dt_j x_j  +  exp(cum_i) S_in C_i  +  D x_i
    S_out  = Σ_j exp(cum_last - cum_j) dt_j x_j ⊗ B_j       +  exp(cum_last) S_in

A pair (i, j), or a state and a token, of different segments is masked out. C·Bᵀ is computed once a group and shared by its heads.
Only the short recurrence over chunk states is sequential. The backward pass recomputes the chunk-local matrices (`jax.checkpoint`),
so nothing of size [q,q] a head is kept between the passes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def ssd_xla(
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    ordinals: Int[Array, "b t"] | None,
    initial_state: Float[Array, "b h p n"],
    chunk_size: int,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"]]:
    """Chunked scan; log-decays, states and sums in the dtype of `initial_state`. See `api.ssd` for the arguments.

    Args:
        ordinals: `segments.segment_ordinals` of the row (dt is already 0 at padding), or None for one document a row.
        chunk_size: tokens a chunk; results do not depend on it beyond rounding.
    """
    b, t, h, p = x.shape
    g = B.shape[2]
    q = min(chunk_size, t)
    pad = -t % q

    def chunks(v, *shape, mode="constant"):
        v = jnp.pad(v, [(0, 0), (0, pad)] + [(0, 0)] * (v.ndim - 2), mode=mode)
        return v.reshape(b, -1, q, *shape)

    # u indexes the heads of a group: h = g · u. A padded tail has dt = 0 and so changes no state.
    u = h // g
    y, final_state = _scan_chunks(
        chunks(x, g, u, p),
        chunks(dt, g, u),
        A.reshape(g, u),
        chunks(B, g, B.shape[-1]),
        chunks(C, g, C.shape[-1]),
        None if ordinals is None else chunks(ordinals, mode="edge"),
        initial_state.reshape(b, g, u, p, -1),
    )
    y = y.reshape(b, -1, h, p)[:, :t] + D[:, None] * x
    return y.astype(x.dtype), final_state.reshape(b, h, p, -1)


@functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
def _scan_chunks(x, dt, A, B, C, segments, initial_state):
    """x [b,c,q,g,u,p], dt [b,c,q,g,u], B and C [b,c,q,g,n], segments [b,c,q] or None, initial_state [b,g,u,p,n]."""
    dtype = initial_state.dtype
    dot = functools.partial(jnp.einsum, preferred_element_type=dtype)
    b, c, q, g, u, p = x.shape
    # Layouts spare transposes, which cost more than the products: pairs of tokens are worked on head by head, [b,c,g,u,q,·], all that
    # concerns states with a group's heads as one wide axis z = u · p, [b,c,q,g,z], against states [b,c,g,n,z].
    pairs = jnp.tril(jnp.ones((q, q), bool))[None, None]
    enters = leaves = jnp.ones((1, 1, q), bool)
    if segments is not None:
        pairs &= segments[..., :, None] == segments[..., None, :]
        before = jnp.concatenate([segments[:, :1, 0], segments[:, :-1, -1]], axis=1)
        enters = segments == before[..., None]  # tokens that see the state entering their chunk
        leaves = segments == segments[..., -1:]  # tokens whose contribution survives to the chunk's end

    def wide(per_head):
        """[b,c,q,g,u] factors times [b,c,q,g,u,p] inputs, as [b,c,q,g,z]."""
        return (per_head[..., None] * x).astype(x.dtype).reshape(b, c, q, g, u * p)

    # The running sum starts anew with each segment, as a product with the mask: a difference of sums that run across a boundary would
    # leave rounding errors of the other document in dt's gradient.
    sums = jnp.broadcast_to(pairs, (b, c, q, q)).astype(dtype)
    cum = dot("bcij,bcjgu->bcigu", sums, dt * A, precision=lax.Precision.HIGHEST)

    # Inside a chunk.
    rows = jnp.moveaxis(cum, 2, -1)
    decay = jnp.exp(jnp.where(pairs[:, :, None, None], rows[..., :, None] - rows[..., None, :], -jnp.inf))
    scores = dot("bcign,bcjgn->bcgij", C, B)
    weights = (scores[:, :, :, None] * decay).astype(x.dtype)
    heads = jnp.moveaxis(wide(dt).reshape(x.shape), 2, 4)
    y = jnp.moveaxis(dot("bcguij,bcgujp->bcguip", weights, heads), 4, 2)

    # What each chunk adds to the state, and how much of the state it lets through.
    # Masked before exp: the difference of two segments' sums can be large and positive.
    to_end = jnp.exp(jnp.where(leaves[..., None, None], cum[:, :, -1:] - cum, -jnp.inf))
    added = dot("bcjgn,bcjgz->bcgnz", B, wide(to_end * dt))
    through = jnp.exp(cum[:, :, -1]) * enters[:, :, -1, None, None]

    def pass_on(state, chunk):
        added_c, through_c = chunk
        return jnp.repeat(through_c, p, axis=-1)[:, :, None] * state + added_c, state

    # [b,g,u,p,n] and [b,g,n,z] are one state in two layouts.
    state = jnp.moveaxis(initial_state, -1, 2).reshape(b, g, -1, u * p)
    state, entering = lax.scan(pass_on, state, (jnp.moveaxis(added, 1, 0), jnp.moveaxis(through, 1, 0)))
    from_start = jnp.exp(cum) * enters[..., None, None]
    read = dot("bcign,cbgnz->bcigz", C.astype(dtype), entering)
    y += read.reshape(x.shape) * from_start[..., None]
    return y, jnp.moveaxis(state.reshape(b, g, -1, u, p), 2, -1)
