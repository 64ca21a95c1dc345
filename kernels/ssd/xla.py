"""The selective scan in chunks, as batched matrix products for XLA (state-space duality, arXiv:2405.21060, section 6).

With a = dt A, cum its running sum inside a chunk (and segment) and S_in the state that enters the chunk,

    y_i    = Σ_{j≤i} exp(cum_i - cum_j) (C_i·B_j) dt_j x_j  +  exp(cum_i) S_in C_i  +  D x_i
    S_out  = Σ_j exp(cum_last - cum_j) dt_j x_j ⊗ B_j       +  exp(cum_last) S_in

A pair (i, j), or a state and a token, of different segments is masked out. C·Bᵀ is computed once a group and shared by its heads.
Only the short recurrence over chunk states is sequential. Between the passes the inputs and the states entering the chunks are kept;
the backward pass rebuilds the chunk-local matrices, so nothing of size [q,q] a head is.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

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


class _Terms(NamedTuple):
    """What depends on dt, A and the segments alone."""

    sums: Float[Array, "b c q q"]
    """1 where the second token is at or before the first one, in its segment."""
    decay: Float[Array, "b c g u q q"]
    """exp(cum_i - cum_j) on those pairs."""
    from_start: Float[Array, "b c q g u"]
    """exp(cum) for tokens that see the state entering their chunk, else 0."""
    to_end: Float[Array, "b c q g u"]
    """exp(cum_last - cum) for tokens whose contribution survives to the chunk's end, else 0."""
    through: Float[Array, "b c g u"]
    """What a chunk lets through of the state that enters it."""


def _terms(dt, A, segments):
    q = dt.shape[2]
    pairs = jnp.tril(jnp.ones((q, q), bool))[None, None]
    enters = leaves = jnp.ones((1, 1, q), bool)
    if segments is not None:
        pairs &= segments[..., :, None] == segments[..., None, :]
        before = jnp.concatenate([segments[:, :1, 0], segments[:, :-1, -1]], axis=1)
        enters = segments == before[..., None]
        leaves = segments == segments[..., -1:]
    # The running sum starts anew with each segment, as a product with the mask: a difference of sums that run across a boundary would
    # leave rounding errors of the other document in dt's gradient.
    sums = jnp.broadcast_to(pairs, (*dt.shape[:2], q, q)).astype(dt.dtype)
    cum = jnp.einsum("bcij,bcjgu->bcigu", sums, dt * A, precision=lax.Precision.HIGHEST)
    rows = jnp.moveaxis(cum, 2, -1)

    def masked_exp(mask, exponent):
        # Masked before exp: the difference of two segments' sums can be large and positive.
        return jnp.exp(jnp.where(mask, exponent, -jnp.inf))

    from_start = masked_exp(enters[..., None, None], cum)
    return _Terms(
        sums,
        masked_exp(pairs[:, :, None, None], rows[..., :, None] - rows[..., None, :]),
        from_start,
        masked_exp(leaves[..., None, None], cum[:, :, -1:] - cum),
        from_start[:, :, -1],
    )


# Layouts spare transposes, which cost more than the products: pairs of tokens are worked on head by head, [b,c,g,u,q,p], all that
# concerns states with a group's heads as one wide axis z = u · p, [b,c,q,g,z], against states [b,c,g,n,z].
def _by_head(x):
    """[b,c,q,g,u,p] to [b,c,g,u,q,p]."""
    return jnp.moveaxis(x, 2, 4)


def _by_token(x):
    """[b,c,g,u,q,p] to [b,c,q,g,u,p]."""
    return jnp.moveaxis(x, 4, 2)


def _wide(x):
    """[b,c,q,g,u,p] to [b,c,q,g,z]."""
    return x.reshape(*x.shape[:4], -1)


def _scaled(x, per_head):
    """Inputs [b,c,q,g,u,p] times factors [b,c,q,g,u], in the dtype of x."""
    return (x * per_head[..., None]).astype(x.dtype)


def _over_channels(per_head, p):
    """[..., g, u] to [..., g, 1, z], to multiply states with."""
    return jnp.repeat(per_head, p, axis=-1)[..., None, :]


def _forward(x, dt, A, B, C, segments, initial_state):
    """x [b,c,q,g,u,p], dt [b,c,q,g,u], B and C [b,c,q,g,n], segments [b,c,q] or None, initial_state [b,g,u,p,n]."""
    dot = functools.partial(jnp.einsum, preferred_element_type=initial_state.dtype)
    p = x.shape[-1]
    terms = _terms(dt, A, segments)

    # Inside a chunk.
    weights = (dot("bcign,bcjgn->bcgij", C, B)[:, :, :, None] * terms.decay).astype(x.dtype)
    y = _by_token(dot("bcguij,bcgujp->bcguip", weights, _by_head(_scaled(x, dt))))

    # From chunk to chunk.
    added = dot("bcjgn,bcjgz->cbgnz", B, _wide(_scaled(x, terms.to_end * dt)))

    def pass_on(state, chunk):
        added_c, through_c = chunk
        return _over_channels(through_c, p) * state + added_c, state

    state, entering = lax.scan(pass_on, _state_in(initial_state), (added, jnp.moveaxis(terms.through, 1, 0)))
    read = dot("bcign,cbgnz->bcigz", C.astype(entering.dtype), entering)
    y += read.reshape(x.shape) * terms.from_start[..., None]
    return (y, _state_out(state, initial_state.shape)), entering


def _state_in(state):
    """[b,g,u,p,n] to [b,g,n,z]."""
    return jnp.moveaxis(state, -1, 2).reshape(*state.shape[:2], state.shape[-1], -1)


def _state_out(state, shape):
    """[b,g,n,z] to [b,g,u,p,n]."""
    b, g, u, p, n = shape
    return jnp.moveaxis(state.reshape(b, g, n, u, p), 2, -1)


@jax.custom_vjp
def _scan_chunks(x, dt, A, B, C, segments, initial_state):
    return _forward(x, dt, A, B, C, segments, initial_state)[0]


def _save(x, dt, A, B, C, segments, initial_state):
    out, entering = _forward(x, dt, A, B, C, segments, initial_state)
    return out, (x, dt, A, B, C, segments, initial_state, entering)


def _backward(saved, cotangents):
    """Gradients by hand: autodiff would keep several [q,q] matrices a head, and transpose them."""
    x, dt, A, B, C, segments, initial_state, entering = saved
    dy, d_final = cotangents
    dtype = initial_state.dtype
    dot = functools.partial(jnp.einsum, preferred_element_type=dtype)
    p = x.shape[-1]
    terms = _terms(dt, A, segments)

    # Inside a chunk.
    scores = dot("bcign,bcjgn->bcgij", C, B)
    weights = scores[:, :, :, None] * terms.decay
    dy_heads, inputs = _by_head(dy.astype(x.dtype)), _by_head(_scaled(x, dt))
    d_weights = dot("bcguip,bcgujp->bcguij", dy_heads, inputs)
    # Summed over heads as a product with ones: as a reduction over a major axis it was the slowest step of the pass on CPU.
    d_scores = dot("u,bcguij->bcgij", jnp.ones(x.shape[4], dtype), d_weights * terms.decay).astype(x.dtype)
    # A token's decay to itself is 1: left in, it would cancel between the two sums only up to rounding.
    d_exponent = jnp.where(jnp.eye(x.shape[2], dtype=bool), 0, d_weights * weights)
    d_cum = jnp.moveaxis(jnp.sum(d_exponent, axis=-1) - jnp.sum(d_exponent, axis=-2), -1, 2)
    d_inputs = _by_token(dot("bcguij,bcguip->bcgujp", weights.astype(x.dtype), dy_heads))
    dC = dot("bcgij,bcjgn->bcign", d_scores, B)
    dB = dot("bcgij,bcign->bcjgn", d_scores, C)

    # What tokens read from the state that enters their chunk.
    C_wide = C.astype(dtype)
    read = dot("bcign,cbgnz->bcigz", C_wide, entering).reshape(x.shape)
    d_cum += jnp.sum(dy * read, axis=-1) * terms.from_start
    d_read = _wide(dy.astype(dtype) * terms.from_start[..., None])
    dC += dot("bcigz,cbgnz->bcign", d_read, entering)
    d_entering = dot("bcign,bcigz->cbgnz", C_wide, d_read)

    # From chunk to chunk, backwards.
    def pass_back(d_leaving, chunk):
        d_entering_c, through_c = chunk
        return d_entering_c + _over_channels(through_c, p) * d_leaving, d_leaving

    through = jnp.moveaxis(terms.through, 1, 0)
    d_initial, d_leaving = lax.scan(pass_back, _state_in(d_final), (d_entering, through), reverse=True)
    d_through = jnp.sum(d_leaving * entering, axis=3).reshape(*through.shape, p).sum(-1)
    d_last = jnp.moveaxis(d_through * through, 0, 1)

    # What tokens add to the state that leaves their chunk.
    survives = terms.to_end * dt
    dB += dot("bcjgz,cbgnz->bcjgn", _wide(_scaled(x, survives)).astype(dtype), d_leaving)
    d_added = dot("bcjgn,cbgnz->bcjgz", B.astype(dtype), d_leaving).reshape(x.shape)
    d_survives = jnp.sum(d_added * x, axis=-1)
    d_cum -= d_survives * survives
    d_cum = d_cum.at[:, :, -1].add(d_last + jnp.sum(d_survives * survives, axis=2))

    dx = d_added * survives[..., None] + d_inputs * dt[..., None]
    d_sums = dot("bcij,bcigu->bcjgu", terms.sums, d_cum, precision=lax.Precision.HIGHEST)
    d_dt = d_survives * terms.to_end + jnp.sum(d_inputs * x, axis=-1) + d_sums * A
    dA = jnp.sum(d_sums * dt, axis=(0, 1, 2))
    d_initial = _state_out(d_initial, initial_state.shape)
    return dx.astype(x.dtype), d_dt, dA, dB.astype(B.dtype), dC.astype(C.dtype), None, d_initial


_scan_chunks.defvjp(_save, _backward)
