"""Attention over segments with an optional sliding window, as XLA operations with memory linear in the row length."""

from __future__ import annotations

import contextlib
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from plamo2_kernels.padding import pad_tokens
from plamo2_kernels.precision import product_precision

# Default number of queries per block. Scores take h · block · (window + block) values at a time, so a block of about the window wastes
# little on keys outside it. Blocks below the minimum are too small to fill a matrix unit.
_LEAST_BLOCK, _MOST_BLOCK = 128, 512
# The number of keys of a block is a multiple of this, because matrix units and cuDNN are slow with odd lengths.
KEY_MULTIPLE = 8


def banded_attention(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    segment_ids: Int[Array, "b t"] | None,
    window: int | None,
    block_size: int | None,
    *,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Float[Array, "b t h p"]:
    """Compute `attention` as a loop over blocks of queries, each with all keys that its queries may see. Remat in the backward pass.

    Args:
        q, k, v, segment_ids, window: As for `api.attention`.
        block_size: Queries per block; None: by the window.
        implementation: Implementation of `jax.nn.dot_product_attention` within a block.
    """
    block_size = default_block(window) if block_size is None else block_size
    b, t = q.shape[:2]
    if segment_ids is None:
        segment_ids = jnp.ones((b, t), jnp.int32)
    if t <= block_size:
        index = jnp.broadcast_to(jnp.arange(t), (b, t))
        return masked_attention(
            q, k, v, segment_ids, segment_ids, index, index, window=window, implementation=implementation
        )
    # Padding is a separate segment, so only padded queries see padded keys.
    if pad := -t % block_size:
        q, k, v, segment_ids = (pad_tokens(a, 0, pad) for a in (q, k, v, segment_ids))
    return attend_by_block(q, k, v, segment_ids, segment_ids, window, block_size, implementation)[:, :t]


def default_block(window: int | None) -> int:
    """Return the default number of queries per block."""
    return _MOST_BLOCK if window is None else min(max(window, _LEAST_BLOCK), _MOST_BLOCK)


def attend_by_block(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b s g p"],
    v: Float[Array, "b s g p"],
    q_segments: Int[Array, "b t"],
    k_segments: Int[Array, "b s"],
    window: int | None,
    block_size: int,
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "b t h p"]:
    """Compute attention of the last t of s tokens, in blocks of `block_size` queries. t must be a multiple of `block_size`."""
    b, s = k.shape[:2]
    first = s - q.shape[1]
    index = jnp.broadcast_to(jnp.arange(s), (b, s))
    span = s
    if window is not None:
        span = min(span, window + block_size + -(window + block_size) % KEY_MULTIPLE)

    def one_block(block):
        number, q_block, q_segments, q_index = block
        start = jnp.maximum(first + (number + 1) * block_size - span, 0)
        keys = [lax.dynamic_slice_in_dim(a, start, span, axis=1) for a in (k, v, k_segments, index)]
        return attend(q_block, keys[0], keys[1], q_segments, keys[2], q_index, keys[3])

    attend = functools.partial(masked_attention, window=window, implementation=implementation)
    queries = (q, q_segments, index[:, first:])
    if q.shape[1] == block_size:
        return one_block((0, *queries))
    blocks = [jnp.moveaxis(a.reshape(b, -1, block_size, *a.shape[2:]), 1, 0) for a in queries]
    out = lax.map(jax.checkpoint(one_block), (jnp.arange(blocks[0].shape[0]), *blocks))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)


@functools.partial(jax.named_call, name="masked_attention")
def masked_attention(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b s g p"],
    v: Float[Array, "b s g p"],
    q_segments: Int[Array, "b t"],
    k_segments: Int[Array, "b s"],
    q_positions: Int[Array, "b t"],
    k_positions: Int[Array, "b s"],
    *,
    window: int | None = None,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Float[Array, "b t h p"]:
    """Compute attention of queries to any keys, given the segments and positions of both. Scores are float32.

    The output of a query without visible keys is finite but meaningless.
    """
    allowed = visible_keys(q_segments, k_segments, q_positions, k_positions, window)
    if q.shape[1] == 1 and implementation == "xla":
        return attend_one(q[:, 0], k.swapaxes(1, 2), v.swapaxes(1, 2), allowed[:, 0])[:, None]
    # `dot_product_attention` takes no precision as an argument.
    full = product_precision(q.dtype) is not None
    with jax.default_matmul_precision("highest") if full else contextlib.nullcontext():
        return jax.nn.dot_product_attention(q, k, v, mask=allowed[:, None], implementation=implementation)


def visible_keys(
    q_segments: Int[Array, "b t"],
    k_segments: Int[Array, "b s"],
    q_positions: Int[Array, "b t"],
    k_positions: Int[Array, "b s"],
    window: int | None,
) -> Bool[Array, "b t s"]:
    """Return which keys each query sees: those of its segment that are at most `window` tokens before it, and not after it."""
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    allowed = (q_segments[:, :, None] == k_segments[:, None, :]) & (distance >= 0)
    return allowed if window is None else allowed & (distance <= window)


@functools.partial(jax.named_call, name="attend_one")
def attend_one(
    q: Float[Array, "b h p"], k: Float[Array, "b g s p"], v: Float[Array, "b g s p"], allowed: Bool[Array, "b s"]
) -> Float[Array, "b h p"]:
    """Compute attention of one query per row. Scores are float32. Neither keys nor values are copied."""
    b, h, p = q.shape
    g = k.shape[1]
    q = q.reshape(b, g, h // g, p)
    dot = functools.partial(jnp.einsum, precision=product_precision(q.dtype))
    scores = dot("bgsp,bgup->bgsu", k, q, preferred_element_type=jnp.float32) * p**-0.5
    scores = jnp.where(allowed[:, None, :, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=2).astype(v.dtype)
    return dot("bgsu,bgsp->bgup", weights, v).reshape(b, h, p)
