"""Attention on TPU with JAX's splash attention, a flash kernel that skips the blocks of keys outside the window and after the query.

The kernel compares segments, so blocks of other documents are computed and masked. The fused backward kernel of the library is not used,
because it writes the gradient of the queries once per block of keys, which is quadratic in the row length.

XLA cannot partition a Pallas kernel. On several devices, call `attention` inside `jax.shard_map(..., check_vma=False)` over rows and heads.
(The library does not declare over which axes its outputs vary.)
"""

from __future__ import annotations

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from plamo2_kernels.padding import pad_tokens

_LANES = 128
# Tokens per block of queries and of keys, by the TPU compiler's schedules (v5p and v6e, p = 128, the three kernels together): a step with
# 1024 takes 3.1 times as long as a step with 512 and does 4 times the work, which is faster if blocks are mostly full. With a window of at
# most `_SMALL_WINDOW`, masked keys cost more than this gain. 256 takes 1.9 times as long as 1024 (v5p, window 2048).
_BLOCK, _SMALL_BLOCK, _SMALL_WINDOW = 1024, 512, 1024
_MOST_HEAD_BYTES = 512
# Head sizes that were compiled: 16, 32, 64, 96, 128, 192, 256. Sizes below 128 leave lanes unused.
_HEAD_MULTIPLE = 16
# Number of keys of a block that are multiplied at a time, in the kernels that loop over keys.
_COMPUTE = 512


def obstacle(q: Float[Array, "b t h p"], block_size: int | None) -> str | None:
    """Return the reason why splash cannot process these queries, or None if it can."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"splash takes bfloat16 or float32, not {q.dtype}"
    if q.shape[3] % _HEAD_MULTIPLE:
        return f"its heads must be a multiple of {_HEAD_MULTIPLE}, not {q.shape[3]}"
    if block_size is not None and block_size % _LANES:
        return f"block_size={block_size} must be a multiple of {_LANES}"
    return None


def splash_attention(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b s g p"],
    v: Float[Array, "b s g p"],
    segment_ids: Int[Array, "b t"] | None,
    window: int | None,
    block_size: int | None,
    *,
    key_segment_ids: Int[Array, "b s"] | None = None,
    interpret: bool = False,
) -> Float[Array, "b t h p"]:
    """Compute `attention` on TPU. Rows are padded to a multiple of the block.

    The queries are the last t of the s tokens of the row. `segment_ids` belongs to the queries and `key_segment_ids` to the keys. If
    `key_segment_ids` is None, the keys have the segments of the queries.
    """
    t, h, p = q.shape[1:]
    block = min(block_size or _choose_block(t, window, p * q.dtype.itemsize), t + -t % _LANES)
    pad = -t % block
    lead = -(k.shape[1] + pad) % block
    # The kernel does not scale.
    q = (q.astype(jnp.float32) * p**-0.5).astype(q.dtype)
    q = pad_tokens(q, 0, pad).swapaxes(1, 2)
    k, v = (pad_tokens(a, lead, pad).swapaxes(1, 2) for a in (k, v))
    kernel = _kernel(q.shape[2], k.shape[2], h, window, block, interpret)
    if segment_ids is None:
        # The padding is at the end, where the causal mask hides it.
        y = jax.vmap(kernel)(q, k, v)
    else:
        keys = segment_ids if key_segment_ids is None else key_segment_ids
        segments = library.SegmentIds(pad_tokens(segment_ids, 0, pad), pad_tokens(keys, lead, pad))
        y = jax.vmap(kernel)(q, k, v, segments)
    return y.swapaxes(1, 2)[:, :t]


def _choose_block(t: int, window: int | None, head_bytes: int) -> int:
    # A larger block with larger heads exceeds the VMEM limit of a kernel on v5e.
    small = t % _BLOCK or head_bytes > _MOST_HEAD_BYTES or (window is not None and window <= _SMALL_WINDOW)
    return _SMALL_BLOCK if small else _BLOCK


@functools.lru_cache(maxsize=32)
def _kernel(t: int, s: int, h: int, window: int | None, block: int, interpret: bool) -> library.SplashAttentionKernel:
    """Return the kernel for t queries at the end of s keys. Its tables of blocks, about ts/block² bytes, are constants."""
    if window is None or window >= s - 1:
        mask = masks.CausalMask((t, s), offset=s - t)
    else:
        mask = masks.LocalMask((t, s), (window, 0), offset=s - t)
    compute = block if block % _COMPUTE else _COMPUTE
    sizes = library.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=compute,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def make() -> library.SplashAttentionKernel:
        return library.make_splash_mha(
            masks.MultiHeadMask([mask] * h), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )

    # NumPy tables belong to no device and no trace, so one kernel can be used in all of them. Traces belong to threads, so no trace reaches
    # a new thread. `jax.ensure_compile_time_eval` is not enough in a `shard_map` that is differentiated without rematerialization.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        kernel = pool.submit(make).result()
    return jax.tree.map(np.asarray, kernel)
