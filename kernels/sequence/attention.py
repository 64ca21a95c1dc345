"""Attention over a row in shards, with a halo of `window` keys or the keys of the whole row.

Queries stay on their device. Keys and values, which are small with grouped heads, are sent to the queries. With full attention every shard
holds the keys and values of the row, 2·g·p numbers per token (64 MiB for 32,768 tokens with 4 heads of 128 in bfloat16). Ring attention
would hold only two shards of them, but needs the normalizers of an online softmax from every kernel.

With full attention, a query near the end of the row has the most keys. Therefore splash attention exchanges half of the queries: the first
shard with the last one, the second shard with the last but one, and so on. Then all shards compute the same number of blocks, about half of
all pairs of blocks. (The striped order of arXiv:2311.09431 has the same aim, but changes the order of tokens for all layers.) XLA's
attention computes all keys for each query, so its queries are not exchanged.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention import Implementation, attention, choose_implementation
from plamo2_kernels.attention.splash import CHECKPOINT_NAME, attend_pieces, splash_attention
from plamo2_kernels.attention.xla import KEY_MULTIPLE, attend_by_block, default_block
from plamo2_kernels.padding import pad_tokens
from plamo2_kernels.sequence.halo import exchange_halves, preceding, rest_of_the_row


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
        ImplementationError: The given implementation cannot run.
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

    if implementation == "splash" and t % 2 == 0 and (window is None or window >= shards * t - 1):
        return _exchange_and_attend(q, k, v, segment_ids, axis_name, block_size, interpret)

    def with_earlier(a):
        if window is None or window >= (shards - 1) * t:
            return jnp.concatenate([rest_of_the_row(a, axis_name), a], axis=1)
        return jnp.concatenate([preceding(a, window, axis_name), a], axis=1)

    k, v, key_segments = map(with_earlier, (k, v, segment_ids))
    if implementation == "splash":
        return splash_attention(
            q, k, v, segment_ids, window, block_size, key_segment_ids=key_segments, interpret=interpret
        )
    if block_size is None:
        block_size = min(default_block(window), t)
        block_size += -block_size % KEY_MULTIPLE
    pad = -t % block_size
    # Padding is a separate segment, so only padded queries see padded keys.
    lead = -(k.shape[1] + pad) % KEY_MULTIPLE
    q, segment_ids = (pad_tokens(a, 0, pad) for a in (q, segment_ids))
    k, v, key_segments = (pad_tokens(a, lead, pad) for a in (k, v, key_segments))
    y = attend_by_block(q, k, v, segment_ids, key_segments, window, block_size, implementation)[:, :t]
    return checkpoint_name(y, CHECKPOINT_NAME)


def _exchange_and_attend(q, k, v, segment_ids, axis_name, block_size, interpret):
    k, v, key_segments = (lax.all_gather(a, axis_name, axis=1, tiled=True) for a in (k, v, segment_ids))
    q, segment_ids = (exchange_halves(a, axis_name) for a in (q, segment_ids))
    y = attend_pieces(
        q,
        k,
        v,
        segment_ids,
        key_segments,
        block_size,
        shard=lax.axis_index(axis_name),
        shards=lax.axis_size(axis_name),
        interpret=interpret,
    )
    return exchange_halves(y, axis_name)
