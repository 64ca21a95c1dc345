"""Attention over segments with an optional sliding window, as XLA operations with memory linear in the row length."""

from __future__ import annotations

import contextlib
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from plamo2_kernels.precision import product_precision

# Default number of queries per block. Scores take h · block · (window + block) values at a time, so a block of about the window wastes
# little on keys outside it. Blocks below the minimum are too small to fill a matrix unit.
_LEAST_BLOCK, _MOST_BLOCK = 128, 512
# The number of keys of a block is a multiple of this, because matrix units and cuDNN are slow with odd lengths.
_KEY_MULTIPLE = 8


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
    if block_size is None:
        block_size = _MOST_BLOCK if window is None else min(max(window, _LEAST_BLOCK), _MOST_BLOCK)
    b, t = q.shape[:2]
    if segment_ids is None:
        segment_ids = jnp.ones((b, t), jnp.int32)
    attend = functools.partial(masked_attention, window=window, implementation=implementation)
    if t <= block_size:
        index = jnp.broadcast_to(jnp.arange(t), (b, t))
        return attend(q, k, v, segment_ids, segment_ids, index, index)

    # Padding is a separate segment, so only padded queries see padded keys.
    pad = -t % block_size
    if pad:
        q, k, v, segment_ids = (
            jnp.pad(a, [(0, 0), (0, pad)] + [(0, 0)] * (a.ndim - 2)) for a in (q, k, v, segment_ids)
        )
    index = jnp.broadcast_to(jnp.arange(t + pad), (b, t + pad))
    span = t + pad
    if window is not None:
        span = min(span, window + block_size + -(window + block_size) % _KEY_MULTIPLE)
    blocks = [a.reshape(b, -1, block_size, *a.shape[2:]) for a in (q, segment_ids, index)]

    @jax.checkpoint
    def one_block(block):
        number, q_block, q_segments, q_index = block
        start = jnp.maximum((number + 1) * block_size - span, 0)
        keys = [lax.dynamic_slice_in_dim(a, start, span, axis=1) for a in (k, v, segment_ids, index)]
        return attend(q_block, keys[0], keys[1], q_segments, keys[2], q_index, keys[3])

    numbers = jnp.arange(blocks[0].shape[1])
    out = lax.map(one_block, (numbers, *(jnp.moveaxis(a, 1, 0) for a in blocks)))
    return jnp.moveaxis(out, 0, 1).reshape(b, -1, *q.shape[2:])[:, :t]


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
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    allowed = (q_segments[:, :, None] == k_segments[:, None, :]) & (distance >= 0)
    if window is not None:
        allowed &= distance <= window
    if q.shape[1] == 1 and implementation == "xla":
        return _attend_one(q[:, 0], k, v, allowed[:, 0])[:, None]
    # It takes no precision as an argument.
    full = product_precision(q.dtype) is not None
    with jax.default_matmul_precision("highest") if full else contextlib.nullcontext():
        return jax.nn.dot_product_attention(q, k, v, mask=allowed[:, None], implementation=implementation)


def _attend_one(
    q: Float[Array, "b h p"], k: Float[Array, "b s g p"], v: Float[Array, "b s g p"], allowed: Bool[Array, "b s"]
) -> Float[Array, "b h p"]:
    """Compute attention of one query per row as products of keys with the query. The other order would transpose all keys on CPU."""
    b, h, p = q.shape
    g = k.shape[2]
    q = q.reshape(b, g, h // g, p)
    dot = functools.partial(jnp.einsum, precision=product_precision(q.dtype))
    scores = dot("bsgp,bgup->bgsu", k, q, preferred_element_type=jnp.float32) * p**-0.5
    scores = jnp.where(allowed[:, None, :, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=2).astype(v.dtype)
    return dot("bgsu,bsgp->bgup", weights, v).reshape(b, h, p)
