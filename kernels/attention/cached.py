"""Attention of a piece of a row to its own keys and to the earlier keys, which a ring holds."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from plamo2_kernels.attention import splash
from plamo2_kernels.attention.api import Implementation, choose_implementation
from plamo2_kernels.attention.xla import masked_attention, visible_keys

# A row whose float32 scores take at most this many bytes is computed at once.
_MOST_SCORES = 16 << 20
# A longer row is computed in blocks of this many queries and of this many keys of the ring.
_BLOCK = 128
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
        return _attend_in_blocks(q, piece, ring, count, window)
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
def _attend_in_blocks(q: Float[Array, "b t h p"], piece: Keys, ring: Keys, count: Int[Array, " b"], window: int | None):
    """Attend with one block of queries to one block of keys after the other (arXiv:2112.05682).

    No keys are copied. Blocks of the ring that no row has written are skipped. A block of queries sees no later keys of the piece.
    """
    b, t, h, p = q.shape
    g, s = ring.k.shape[1:3]
    queries = q.reshape(b, t, g, h // g, p)
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)

    size = min(_BLOCK, s)
    written = jnp.minimum(jnp.max(count), s)

    def attend(rows: slice, keys: Keys, counted: Bool[Array, " s"] | None, carry):
        """Add a block of keys to the running maximum, sum and output of a block of queries."""
        largest, total, mixed = carry
        allowed = visible_keys(
            piece.segment_ids[:, rows], keys.segment_ids, piece.positions[:, rows], keys.positions, window
        )
        allowed = (allowed if counted is None else allowed & counted)[:, None, None]
        scores = p**-0.5 * dot("btgup,bgsp->bguts", queries[:, rows], keys.k)
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1))
        kept = jnp.exp(largest - new)
        weights = jnp.where(allowed, jnp.exp(scores - new[..., None]), 0)
        more = dot("bguts,bgsp->bgutp", weights.astype(keys.v.dtype), keys.v)
        return new, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + more

    def query_block(first: int) -> Float[Array, "b g u t p"]:
        rows = slice(first, min(first + _BLOCK, t))

        def ring_block(i, carry):
            # The last block may overlap the block before it. Shared keys count once.
            start = jnp.minimum(i * size, s - size)
            keys = Keys(*(lax.dynamic_slice_in_dim(a, start, size, axis) for a, axis in zip(ring, _SLOTS, strict=True)))
            return attend(rows, keys, start + jnp.arange(size) >= i * size, carry)

        shape = (b, g, h // g, rows.stop - first)
        carry = jnp.full(shape, jnp.finfo(jnp.float32).min), jnp.zeros(shape), jnp.zeros((*shape, p))
        carry = lax.fori_loop(0, (written + size - 1) // size, ring_block, carry)
        earlier = Keys(*(lax.slice_in_dim(a, 0, rows.stop, axis=axis) for a, axis in zip(piece, _SLOTS, strict=True)))
        _, total, mixed = attend(rows, earlier, None, carry)
        return mixed / total[..., None]

    out = jnp.concatenate([query_block(first) for first in range(0, t, _BLOCK)], axis=3)
    return jnp.moveaxis(out, 3, 1).reshape(q.shape).astype(q.dtype)
