"""jax's splash attention for queries that are the last of a longer row of keys."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention.splash import _COMPUTE, _LANES, _choose_block


def trailing_splash(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b s g p"],
    v: Float[Array, "b s g p"],
    segments: Int[Array, "b t"],
    key_segments: Int[Array, "b s"],
    window: int | None,
    block_size: int | None,
    *,
    interpret: bool = False,
) -> Float[Array, "b t h p"]:
    """Attention of queries that are the last t of the s tokens; as `splash_attention` where the two are as many."""
    t, h, p = q.shape[1:]
    block = min(block_size or _choose_block(t, window, p * q.dtype.itemsize), t + -t % _LANES)
    pad = -t % block
    lead = -(k.shape[1] + pad) % block
    # The kernel does not scale.
    q = (q.astype(jnp.float32) * p**-0.5).astype(q.dtype)
    q = jnp.pad(q, [(0, 0), (0, pad), (0, 0), (0, 0)]).swapaxes(1, 2)
    k, v = (jnp.pad(a, [(0, 0), (lead, pad), (0, 0), (0, 0)]).swapaxes(1, 2) for a in (k, v))
    segments, key_segments = jnp.pad(segments, [(0, 0), (0, pad)]), jnp.pad(key_segments, [(0, 0), (lead, pad)])
    kernel = _kernel(q.shape[2], k.shape[2], h, window, block, interpret)
    return jax.vmap(kernel)(q, k, v, library.SegmentIds(segments, key_segments)).swapaxes(1, 2)[:, :t]


@functools.lru_cache(maxsize=32)
def _kernel(t: int, s: int, h: int, window: int | None, block: int, interpret: bool) -> library.SplashAttentionKernel:
    """The kernel for t queries at the end of s keys."""
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
    # Tables of numpy belong to no device and no trace, so one kernel serves all of them.
    with jax.ensure_compile_time_eval():
        kernel = library.make_splash_mha(
            masks.MultiHeadMask([mask] * h), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
    return jax.tree.map(np.asarray, kernel)
