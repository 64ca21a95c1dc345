"""Attention of a piece of a row to its own keys and to the earlier keys, which a ring holds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention import splash
from plamo2_kernels.attention.api import Implementation, choose_implementation
from plamo2_kernels.attention.xla import masked_attention

# A row whose float32 scores take at most this many bytes is computed at once.
_MOST_SCORES = 16 << 20
# A longer row is computed in blocks of this many keys.
_KEY_BLOCK = 128
# A block of splash attention has at least this many queries. With fewer, it would be mostly padding.
_LEAST_SPLASH = 128
# Axis of the tokens in each field of `Keys`.
_SLOTS = (2, 2, 1, 1)


class Keys(NamedTuple):
    """Keys and values with their positions and segments. An empty place of a ring has segment -1."""

    k: Float[Array, "b g s p"]
    v: Float[Array, "b g s p"]
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
    """Return causal attention of a piece of a row, within segments.

    Args:
        q: Queries of the piece.
        piece: Keys of the piece.
        ring: Keys of the tokens before the piece. Token n of the row is at place n mod s.
        count: Tokens of each row before the piece, without padding.
        window: Number of past tokens that a query sees besides itself; None: all.
        implementation: "splash", and "auto" on one TPU, use the splash kernel. Otherwise XLA operations run, with memory linear in the
            number of keys.
        interpret: Run splash in the interpreter, on any platform.

    Returns:
        The attention output in the dtype of q. The softmax is in float32.

    Raises:
        ImplementationError: "splash" cannot run.
    """
    ring = Keys(ring.k.astype(q.dtype), ring.v.astype(q.dtype), ring.positions, ring.segment_ids)
    named = implementation if implementation in ("auto", "splash") else "xla"
    by_splash = named != "xla" and (named == "splash" or q.shape[1] >= _LEAST_SPLASH)
    if by_splash and choose_implementation(q, None, named) == "splash":
        keys = in_order(piece, ring, count)
        segments, key_segments = piece.segment_ids, keys.segment_ids
        k, v = keys.k.swapaxes(1, 2), keys.v.swapaxes(1, 2)
        return splash.splash_attention(
            q, k, v, segments, window, None, key_segment_ids=key_segments, interpret=interpret
        )
    t, h = q.shape[1:3]
    if 4 * h * t * (t + ring.k.shape[2]) > _MOST_SCORES:
        return _attend_in_blocks(q, piece, ring, window)
    keys = _joined(ring, piece)
    k, v = keys.k.swapaxes(1, 2), keys.v.swapaxes(1, 2)
    segments, positions = piece.segment_ids, piece.positions
    return masked_attention(q, k, v, segments, keys.segment_ids, positions, keys.positions, window=window)


def in_order(piece: Keys, ring: Keys, count: Int[Array, " b"]) -> Keys:
    """Return the keys of the ring in order of age, then the keys of the piece. The distance of two places is the distance of their tokens.

    The ring's newest key is directly before the first token of the piece that is not padding.
    """
    s, t = ring.k.shape[2], piece.k.shape[2]
    real = piece.segment_ids != 0
    lead = jnp.where(real.any(1), jnp.argmax(real, axis=1), t)[:, None]
    place = jnp.arange(s + t)
    age = place - lead
    index = jnp.where(age < s, (count[:, None] + age) % s, place)
    joined = _joined(ring, piece)
    k, v = (jax.vmap(lambda a, i: a[:, i])(a, index) for a in joined[:2])
    keys = Keys(k, v, *(jax.vmap(lambda a, i: a[i])(a, index) for a in joined[2:]))
    return keys._replace(segment_ids=jnp.where(age < 0, -1, keys.segment_ids))


def _joined(ring: Keys, piece: Keys) -> Keys:
    return Keys(
        *(jnp.concatenate(both, axis) for both, axis in zip(zip(ring, piece, strict=True), _SLOTS, strict=True))
    )


@jax.named_call
def _attend_in_blocks(q: Float[Array, "b t h p"], piece: Keys, ring: Keys, window: int | None):
    """Attend to one block of keys after the other, with a running maximum and sum of the softmax (arXiv:2112.05682). No keys are copied."""
    b, t, h, p = q.shape
    g = piece.k.shape[1]
    queries = q.reshape(b, t, g, h // g, p)
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def visit(keys: Keys, carry):
        s = keys.k.shape[2]
        size = min(_KEY_BLOCK, s)

        def block(i, carry):
            largest, total, mixed = carry
            # The last block may overlap the block before it. Shared keys count once.
            start = jnp.minimum(i * size, s - size)
            k, v, positions, segments = (
                lax.dynamic_slice_in_dim(a, start, size, axis) for a, axis in zip(keys, _SLOTS, strict=True)
            )
            distance = piece.positions[:, :, None] - positions[:, None, :]
            allowed = (piece.segment_ids[:, :, None] == segments[:, None, :]) & (distance >= 0)
            allowed &= start + jnp.arange(size) >= i * size
            if window is not None:
                allowed &= distance <= window
            scores = p**-0.5 * jnp.einsum(
                "btgup,bgsp->bguts", queries, k, precision=precision, preferred_element_type=jnp.float32
            )
            scores = jnp.where(allowed[:, None, None], scores, jnp.finfo(jnp.float32).min)
            new = jnp.maximum(largest, jnp.max(scores, axis=-1))
            kept = jnp.exp(largest - new)
            weights = jnp.where(allowed[:, None, None], jnp.exp(scores - new[..., None]), 0)
            more = jnp.einsum(
                "bguts,bgsp->bgutp", weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
            )
            return new, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + more

        return lax.fori_loop(0, -(-s // size), block, carry)

    shape = (b, g, h // g, t)
    carry = jnp.full(shape, jnp.finfo(jnp.float32).min), jnp.zeros(shape), jnp.zeros((*shape, p))
    _, total, mixed = visit(piece, visit(ring, carry))
    return jnp.moveaxis(mixed / total[..., None], 3, 1).reshape(q.shape).astype(q.dtype)
