"""Attention over a row in shards, with a halo of `window` keys or the keys of the whole row.

Queries stay on their device, and keys and values, which are small with grouped heads, are sent to them. With full attention every shard
holds the keys and values of the row, 2·g·p numbers per token (64 MiB for 32,768 tokens with 4 heads of 128 in bfloat16). Ring attention
would hold only two shards of them, but needs the normalisers of an online softmax from every kernel. Shards are contiguous, so the last
shard has the most work and determines the time; every shard computes as many blocks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention import Implementation, attention, choose_implementation, masked_attention
from plamo2_kernels.attention.splash import splash_attention
from plamo2_kernels.sequence.halo import preceding, rest_of_the_row

# Queries per block of the loop, as in the loop over a whole row. Matrix units and cuDNN are fast with these lengths.
_LEAST_BLOCK, _MOST_BLOCK, _MULTIPLE = 128, 512, 8


def sharded_attention(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    *,
    axis_name: str,
    segment_ids: Int[Array, "b t"] | None = None,
    window: int | None = None,
    implementation: Implementation = "auto",
    block_size: int | None = None,
    interpret: bool = False,
) -> Float[Array, "b t h p"]:
    """Compute `attention` of this shard's queries to the keys of the row.

    A query sees a key if their segment ids are equal, as in a whole row, even if they are in different shards.

    Raises:
        ValueError: The given implementation cannot run.
    """
    shards, t = lax.axis_size(axis_name), q.shape[1]
    if shards == 1:
        return attention(
            q,
            k,
            v,
            segment_ids=segment_ids,
            window=window,
            implementation=implementation,
            block_size=block_size,
            interpret=interpret,
        )
    implementation = choose_implementation(q, block_size, implementation)
    if segment_ids is None:
        # Keys before the row are zeros, so segments are needed even if the row is one document.
        segment_ids = jnp.ones_like(q, jnp.int32, shape=q.shape[:2])

    def with_earlier(a):
        if window is None or window >= (shards - 1) * t:
            return jnp.concatenate([rest_of_the_row(a, axis_name), a], axis=1)
        return jnp.concatenate([preceding(a, window, axis_name), a], axis=1)

    k, v, key_segments = map(with_earlier, (k, v, segment_ids))
    if implementation == "splash":
        return splash_attention(
            q, k, v, segment_ids, window, block_size, key_segment_ids=key_segments, interpret=interpret
        )
    return _trailing(q, k, v, segment_ids, key_segments, window, block_size, implementation)


def _trailing(q, k, v, segments, key_segments, window, block_size, implementation):
    """`banded_attention` of queries [b,t,h,p] that are the last t of the s tokens of k and v [b,s,g,p]."""
    t, s = q.shape[1], k.shape[1]
    if block_size is None:
        block_size = _MOST_BLOCK if window is None else min(max(window, _LEAST_BLOCK), _MOST_BLOCK)
        block_size = min(block_size, t)
        block_size += -block_size % _MULTIPLE
    pad = -t % block_size
    # Padded keys are padding, which only padding sees.
    lead = -(s + pad) % _MULTIPLE
    q, segments = (_padded(a, 0, pad) for a in (q, segments))
    k, v, key_segments = (_padded(a, lead, pad) for a in (k, v, key_segments))
    b, s = k.shape[:2]
    first = s - q.shape[1]
    span = s
    if window is not None:
        span = min(s, window + block_size + -(window + block_size) % _MULTIPLE)

    def one_block(block):
        number, q_block, segments_block = block
        end = first + (number + 1) * block_size
        start = jnp.maximum(end - span, 0)
        keys = [lax.dynamic_slice_in_dim(a, start, span, axis=1) for a in (k, v, key_segments)]
        places = (
            jnp.broadcast_to(offset + jnp.arange(n), (b, n))
            for offset, n in ((end - block_size, block_size), (start, span))
        )
        return attend(q_block, keys[0], keys[1], segments_block, keys[2], *places)

    attend = functools.partial(masked_attention, window=window, implementation=implementation)
    if q.shape[1] == block_size:
        return one_block((0, q, segments))[:, :t]
    blocks = [jnp.moveaxis(a.reshape(b, -1, block_size, *a.shape[2:]), 1, 0) for a in (q, segments)]
    out = lax.map(jax.checkpoint(one_block), (jnp.arange(blocks[0].shape[0]), *blocks))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)[:, :t]


def _padded(a, before, after):
    return jnp.pad(a, [(0, 0), (before, after)] + [(0, 0)] * (a.ndim - 2))
