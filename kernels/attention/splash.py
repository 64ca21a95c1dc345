"""Attention on TPU with JAX's splash attention, a flash kernel that skips the blocks of keys outside the window and after the query.

The kernel compares segments, so blocks of other documents are computed and masked. The fused backward kernel of the library is not used,
because it writes the gradient of the queries once per block of keys, which is quadratic in the row length.

For a row in shards, `attend_pieces` gives all shards the same number of blocks. With contiguous shards, the last one would have almost
twice as many.

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
CHECKPOINT_NAME = "attention"
"""Name for rematerialization policies: the output of attention, and of splash also the logarithms of the normalizers of the softmax."""
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
    t = q.shape[1]
    block = _choose_block(q, t, window, block_size)
    pad = -t % block
    lead = -(k.shape[1] + pad) % block
    q = pad_tokens(_scaled(q), 0, pad)
    k, v = (pad_tokens(a, lead, pad) for a in (k, v))
    kernel = _kernel(q.shape[1], k.shape[1], window, block, interpret)
    segments = None
    if segment_ids is not None:
        keys = segment_ids if key_segment_ids is None else key_segment_ids
        segments = library.SegmentIds(pad_tokens(segment_ids, 0, pad), pad_tokens(keys, lead, pad))
    return _call(kernel, q, k, v, segments)[:, :t]


def attend_pieces(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b s g p"],
    v: Float[Array, "b s g p"],
    segment_ids: Int[Array, "b t"],
    key_segment_ids: Int[Array, "b s"],
    block_size: int | None,
    *,
    shard: Int[Array, ""],
    shards: int,
    interpret: bool = False,
) -> Float[Array, "b t h p"]:
    """Compute full causal attention of two pieces of a row to its keys.

    The row of s tokens is cut into 2·shards pieces. A shard has the pieces `2·shard` and `2·(shards - shard) - 1`, counted from 0. With 4
    shards, these are (0, 7), (2, 5), (4, 3) and (6, 1). t must be even.

    Args:
        q, segment_ids: Queries of both pieces, one after the other, and their segments.
        k, v, key_segment_ids: Keys, values and segments of the whole row.
        block_size: Tokens per block; None: by the length of a piece.
        shard, shards: Number of this shard, and number of shards.
        interpret: Run the kernel in the interpreter.
    """
    b, t, h, p = q.shape
    block = _choose_block(q, t // 2, None, block_size)
    pad = -(t // 2) % block

    def pad_pieces(a):
        pieces = a.reshape(2 * b, t // 2, *a.shape[2:])
        return pad_tokens(pieces, 0, pad).reshape(b, -1, *a.shape[2:])

    tail = -k.shape[1] % block
    k, v, key_segment_ids = (pad_tokens(a, 0, tail) for a in (k, v, key_segment_ids))
    segments = library.SegmentIds(pad_pieces(segment_ids), key_segment_ids)
    tables = _kernel_of_pieces(t // 2, shards, k.shape[1], block, interpret)

    def of_shard(a):
        axis = max(0, a.ndim - 2)
        size = a.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(a, shard * size, size, axis)

    y = _call(jax.tree.map(of_shard, tables), pad_pieces(_scaled(q)), k, v, segments)
    return y.reshape(2 * b, -1, h, p)[:, : t // 2].reshape(q.shape)


def computed_blocks(columns: int, t: int, s: int, block: int) -> int:
    """Return the number of pairs of a block of queries and a block of keys that a kernel computes per head.

    The kernel has a grid step for each entry of its table. Steps of masked blocks do nothing else.

    Args:
        columns: Number of columns of the table of the forward kernel, or of the kernel for the gradient of the queries.
        t, s: Numbers of queries and keys of the kernel.
        block: Number of tokens per block.
    """
    q_blocks, blocks = t // block, s // block
    if columns == blocks and s > t:
        # `attend_pieces`: the blocks before both pieces, and half of the blocks on the diagonal. All shards have this number.
        return q_blocks * (blocks + 1) // 2
    first = blocks - q_blocks
    return sum(min(first + row + 1, columns) for row in range(q_blocks))


def _scaled(q: Float[Array, "b t h p"]) -> Float[Array, "b t h p"]:
    # The kernel does not scale.
    return (q.astype(jnp.float32) * q.shape[3] ** -0.5).astype(q.dtype)


def _call(kernel, q, k, v, segments):
    """Call a kernel with queries [b, t, h, p], and keys and values [b, s, g, p]; return [b, t, h, p]."""
    # Without segments, the padding is at the end, where the causal mask hides it.
    halves = 2 - k.shape[2] % 2

    def heads_first(a):
        """[b, t, h, p] -> [b, halves, h / halves, t, p]"""
        return jnp.moveaxis(a.reshape(*a.shape[:2], halves, -1, a.shape[3]), 1, 3)

    # The two cores of a v4 or v5p chip divide the axes of a vmap. Without the axis over halves, one core would compute all gradients.
    of_half = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    y = jax.vmap(of_half)(*map(heads_first, (q, k, v)), segments)
    return jnp.moveaxis(y, 3, 1).reshape(q.shape)


def _choose_block(q: Array, t: int, window: int | None, block_size: int | None) -> int:
    if block_size is None:
        # A larger block with larger heads exceeds the VMEM limit of a kernel on v5e.
        large_heads = q.shape[3] * q.dtype.itemsize > _MOST_HEAD_BYTES
        small = t % _BLOCK or large_heads or (window is not None and window <= _SMALL_WINDOW)
        block_size = _SMALL_BLOCK if small else _BLOCK
    return min(block_size, t + -t % _LANES)


@functools.lru_cache(maxsize=32)
def _kernel(t: int, s: int, window: int | None, block: int, interpret: bool) -> library.SplashAttentionKernel:
    """Return the kernel for t queries at the end of s keys. Its tables of blocks, about ts/block² bytes, are constants."""
    if window is None or window >= s - 1:
        return _make(masks.CausalMask((t, s), offset=s - t), block, 1, interpret)
    return _make(masks.LocalMask((t, s), (window, 0), offset=s - t), block, 1, interpret)


@functools.lru_cache(maxsize=32)
def _kernel_of_pieces(piece: int, shards: int, s: int, block: int, interpret: bool) -> library.SplashAttentionKernel:
    """Return the kernel of `attend_pieces` with the tables of all shards in order. Pieces are padded to a multiple of the block."""
    within = np.minimum(np.arange(piece + -piece % block, dtype=np.int32), piece - 1)
    starts = [piece * number for shard in range(shards) for number in (2 * shard, 2 * (shards - shard) - 1)]
    positions = np.concatenate([start + within for start in starts])
    return _make(_Pieces(positions, s), block, shards, interpret)


class _Pieces(masks.CausalMask):
    """The causal mask of queries at any positions."""

    def __init__(self, positions: np.ndarray, s: int) -> None:
        super().__init__((len(positions), s))
        self.q_sequence = positions

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        # The library only asks if all or none of a block is visible. For most blocks, two positions decide this.
        queries, keys = self.q_sequence[index[0]], index[1]
        if queries.min() >= keys.stop - 1 or queries.max() < keys.start:
            return np.full((1, 1), queries.min() >= keys.stop - 1)
        return super().__getitem__(index)


def _make(mask: masks.Mask, block: int, shards: int, interpret: bool) -> library.SplashAttentionKernel:
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
            masks.MultiHeadMask([mask]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=shards,
            residual_checkpoint_name=CHECKPOINT_NAME,
            interpret=interpret,
        )

    # NumPy tables belong to no device and no trace, so one kernel can be used in all of them. Traces belong to threads, so no trace reaches
    # a new thread. `jax.ensure_compile_time_eval` is not enough in a `shard_map` that is differentiated without rematerialization.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        kernel = pool.submit(make).result()
    return jax.tree.map(np.asarray, kernel)
