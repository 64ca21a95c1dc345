"""Attention on NVIDIA GPUs with cuDNN's flash attention, through `jax.nn.dot_product_attention`.

cuDNN supports causal attention with a left window for one document per row. Segments need a mask, and the mask of a whole row is quadratic.
So rows with segments use the loop of `banded_attention`, and cuDNN gets the mask of one block at a time.

cuDNN's layout for packed sequences (`q_offsets`, `kv_offsets` of `jax._src.cudnn`) needs no mask. But it is private to JAX, needs Hopper
and a static bound on the documents per row, and computes key offsets from the number of query heads (jax 0.10.2), which is wrong for
grouped heads. Omitting the segments, as maxtext did (AI-Hypercomputer/maxtext#4476), lets documents see each other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention.xla import banded_attention
from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.padding import pad_tokens

# Larger heads need Hopper; lengths under a mask must be even in the backward pass.
_MOST_HEAD_DIM, _MULTIPLE = 128, 8


def obstacle(q: Float[Array, "b t h p"], block_size: int | None) -> str | None:
    """Return the reason why cuDNN cannot process these queries, or None if it can."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN takes bfloat16 or float16, not {q.dtype}"
    if q.shape[3] % 8 or q.shape[3] > _MOST_HEAD_DIM:
        return f"its heads must be a multiple of 8 up to {_MOST_HEAD_DIM}, not {q.shape[3]}"
    if block_size is not None and block_size % _MULTIPLE:
        return f"block_size={block_size} must be a multiple of {_MULTIPLE}"
    return None


def cudnn_attention(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    segment_ids: Int[Array, "b t"] | None,
    window: int | None,
    block_size: int | None,
) -> Float[Array, "b t h p"]:
    """Compute `attention` on a GPU. Raise ImplementationError if JAX finds no cuDNN."""
    try:
        if segment_ids is None:
            # Like `attention`, JAX does not count the token itself in the left window. It adds the token for cuDNN.
            local = None if window is None else (window, 0)
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
            )
        t = q.shape[1]
        if pad := -t % _MULTIPLE:
            q, k, v, segment_ids = (pad_tokens(a, 0, pad) for a in (q, k, v, segment_ids))
        return banded_attention(q, k, v, segment_ids, window, block_size, implementation="cudnn")[:, :t]
    except (RuntimeError, NotImplementedError) as error:
        raise ImplementationError(f"attention: implementation='cudnn' cannot run: {error}") from error
