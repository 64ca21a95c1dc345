"""Attention on TPU by jax's splash attention: a flash kernel that visits only the blocks of keys that window and causality leave.

Segments it compares inside the kernel; blocks of other documents are computed and masked. Its fused backward kernel is not used: it
writes the gradient of the queries once for every block of keys, t/block times the queries, which is quadratic in the row.

XLA cannot partition a Pallas kernel: over several devices call `attention` inside `jax.shard_map` over rows and heads.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

_LANES = 128
_BLOCK = 512


def obstacle(q: Float[Array, "b t h p"], block_size: int | None) -> str | None:
    """Why splash cannot take these queries, in words; None if it can."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"splash takes bfloat16 or float32, not {q.dtype}"
    if q.shape[3] % _LANES:
        return f"its heads must be a multiple of {_LANES}, not {q.shape[3]}"
    if block_size is not None and block_size % _LANES:
        return f"block_size={block_size} must be a multiple of {_LANES}"
    return None


def splash_attention(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    segment_ids: Int[Array, "b t"] | None,
    window: int | None,
    block_size: int | None,
    *,
    interpret: bool = False,
) -> Float[Array, "b t h p"]:
    """`attention` on TPU; rows are padded to a multiple of the block."""
    t, h, p = q.shape[1:]
    block = min(block_size or _BLOCK, t + -t % _LANES)
    pad = -t % block
    # The kernel does not scale.
    q = (q.astype(jnp.float32) * p**-0.5).astype(q.dtype)
    q, k, v = (jnp.pad(a, [(0, 0), (0, pad), (0, 0), (0, 0)]).swapaxes(1, 2) for a in (q, k, v))
    kernel = _kernel(t + pad, h, window, block, interpret)
    if segment_ids is None:
        # Causality hides the padding, which trails.
        y = jax.vmap(kernel)(q, k, v)
    else:
        segment_ids = jnp.pad(segment_ids, [(0, 0), (0, pad)])
        y = jax.vmap(kernel)(q, k, v, library.SegmentIds(segment_ids, segment_ids))
    return y.swapaxes(1, 2)[:, :t]


@functools.lru_cache(maxsize=32)
def _kernel(t: int, h: int, window: int | None, block: int, interpret: bool) -> library.SplashAttentionKernel:
    """The kernel for rows of t tokens; its tables of blocks are of the order of t²/block² bytes and constants of the program."""
    if window is None or window >= t - 1:
        mask = masks.CausalMask((t, t))
    else:
        mask = masks.LocalMask((t, t), (window, 0), offset=0)
    sizes = library.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    # Tables of numpy belong to no device and no trace, so one kernel serves all of them.
    with jax.ensure_compile_time_eval():
        kernel = library.make_splash_mha(
            masks.MultiHeadMask([mask] * h), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
    return jax.tree.map(np.asarray, kernel)
