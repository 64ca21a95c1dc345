"""Attention of a piece of a row to the keys before it, which a ring holds, and to its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention import splash
from plamo2_kernels.attention.api import Implementation, choose_implementation
from plamo2_kernels.attention.xla import masked_attention

# Bytes of float32 scores of a row up to which all of them are computed at once.
_MOST_SCORES = 16 << 20
# Keys of a block where they are not.
_KEY_BLOCK = 128
# Queries below which a block of splash attention, which has at least as many, is mostly padding.
_LEAST_SPLASH = 128


class Keys(NamedTuple):
    """Keys and values, each with its position and its segment; in a ring, -1 is the segment of an empty place."""

    k: Float[Array, "b s g p"]
    v: Float[Array, "b s g p"]
    positions: Int[Array, "b s"]
    segment_ids: Int[Array, "b s"]


def cached_attention(
    q: Float[Array, "b t h p"],
    piece: Keys,
    ring: Keys,
    count: Int[Array, " b"],
    *,
    window: int | None = None,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> Float[Array, "b t h p"]:
    """Causal attention within segments.

    Args:
        q: queries of a piece.
        piece: its keys.
        ring: keys of the tokens before it: token n of the row is at place n mod s.
        count: tokens of each row before the piece, padding left out.
        window: past tokens that a query sees besides itself; None: all.
        implementation: "splash" or, on one TPU, "auto": the splash kernel. Others: XLA operations, whose memory is linear in the number
            of keys for any piece.
        interpret: run splash in the interpreter, on any platform.

    Returns:
        The mixed values in the dtype of q; softmax in float32.
    """
    ring = Keys(ring.k.astype(q.dtype), ring.v.astype(q.dtype), ring.positions, ring.segment_ids)
    named = implementation if implementation in ("auto", "splash") else "xla"
    by_splash = named != "xla" and (named == "splash" or q.shape[1] >= _LEAST_SPLASH)
    if by_splash and choose_implementation(q, None, named) == "splash":
        keys = in_order(piece, ring, count)
        return splash.splash_attention(
            q,
            keys.k,
            keys.v,
            piece.segment_ids,
            window,
            None,
            key_segment_ids=keys.segment_ids,
            interpret=interpret,
        )
    t, h = q.shape[1:3]
    if 4 * h * t * (t + ring.k.shape[1]) > _MOST_SCORES:
        return _attend_in_blocks(q, piece, ring, window)
    keys = _joined(ring, piece)
    segments, positions = piece.segment_ids, piece.positions
    return masked_attention(q, keys.k, keys.v, segments, keys.segment_ids, positions, keys.positions, window=window)


def in_order(piece: Keys, ring: Keys, count: Int[Array, " b"]) -> Keys:
    """The keys of the ring by age and those of the piece, so that distances between places are distances between tokens.

    The ring's newest key comes right before the piece's first token that is not padding.
    """
    s, t = ring.k.shape[1], piece.k.shape[1]
    real = piece.segment_ids != 0
    lead = jnp.where(real.any(1), jnp.argmax(real, axis=1), t)[:, None]
    place = jnp.arange(s + t)
    age = place - lead
    index = jnp.where(age < s, (count[:, None] + age) % s, place)
    keys = Keys(*(jax.vmap(lambda a, i: a[i])(a, index) for a in _joined(ring, piece)))
    return keys._replace(segment_ids=jnp.where(age < 0, -1, keys.segment_ids))


def _joined(ring: Keys, piece: Keys) -> Keys:
    return Keys(*(jnp.concatenate(both, axis=1) for both in zip(ring, piece, strict=True)))


@jax.named_call
def _attend_in_blocks(q: Float[Array, "b t h p"], piece: Keys, ring: Keys, window: int | None):
    """Block of keys by block, with a running maximum and sum of the softmax (arXiv:2112.05682); nothing is copied."""
    b, t, h, p = q.shape
    g = piece.k.shape[2]
    queries = q.reshape(b, t, g, h // g, p)
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def visit(keys: Keys, carry):
        s = keys.k.shape[1]
        size = min(_KEY_BLOCK, s)

        def block(i, carry):
            largest, total, mixed = carry
            # The last block may begin before its place: what it shares with the one before it counts once.
            start = jnp.minimum(i * size, s - size)
            k, v, positions, segments = (lax.dynamic_slice_in_dim(a, start, size, axis=1) for a in keys)
            distance = piece.positions[:, :, None] - positions[:, None, :]
            allowed = (piece.segment_ids[:, :, None] == segments[:, None, :]) & (distance >= 0)
            allowed &= start + jnp.arange(size) >= i * size
            if window is not None:
                allowed &= distance <= window
            scores = p**-0.5 * jnp.einsum(
                "btgup,bsgp->bguts", queries, k, precision=precision, preferred_element_type=jnp.float32
            )
            scores = jnp.where(allowed[:, None, None], scores, jnp.finfo(jnp.float32).min)
            new = jnp.maximum(largest, jnp.max(scores, axis=-1))
            kept = jnp.exp(largest - new)
            weights = jnp.where(allowed[:, None, None], jnp.exp(scores - new[..., None]), 0)
            more = jnp.einsum(
                "bguts,bsgp->bgutp", weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
            )
            return new, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + more

        return lax.fori_loop(0, -(-s // size), block, carry)

    shape = (b, g, h // g, t)
    carry = jnp.full(shape, jnp.finfo(jnp.float32).min), jnp.zeros(shape), jnp.zeros((*shape, p))
    _, total, mixed = visit(piece, visit(ring, carry))
    return jnp.moveaxis(mixed / total[..., None], 3, 1).reshape(q.shape).astype(q.dtype)
