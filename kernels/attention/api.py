"""`attention`: causal self-attention of whole rows, whichever library computes it, with memory linear in the row length.

A query sees a key if both are of one segment and `0 <= distance <= window`: `window` past tokens and itself, as the public PLaMo 2
code masks (window + 1 keys). Padding sees only padding, so every query has a key and no row of the softmax is empty.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention import cudnn, splash
from plamo2_kernels.attention.xla import banded_attention
from plamo2_kernels.devices import on_one_device

Implementation = Literal["auto", "xla", "splash", "cudnn"]


def attention(
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    window: int | None = None,
    implementation: Implementation = "auto",
    block_size: int | None = None,
    interpret: bool = False,
) -> Float[Array, "b t h p"]:
    """Causal self-attention; query head i reads key/value head i // (h // g), scores are scaled by p^-0.5.

    Args:
        segment_ids: documents and padding (0); None: one document a row.
        window: past tokens a query sees besides itself; None: all.
        implementation: "auto" chooses by the platform; a named one is used as named: "splash" on TPU, "cudnn" on NVIDIA GPUs, "xla"
            everywhere.
        block_size: queries computed at a time; results do not depend on it beyond rounding. None: by the window or the platform.
        interpret: run splash in the interpreter, on any platform.

    Returns:
        The mixed values in the dtype of q; softmax in float32.

    Raises:
        ValueError: shapes do not fit together, an unknown implementation, or a named one that cannot run.
    """
    if implementation not in get_args(Implementation):
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"attention: implementation={implementation!r} must be one of {names}")
    _check_shapes(q, k, v, segment_ids, window)
    implementation = choose_implementation(q, block_size, implementation)
    if implementation == "splash":
        return splash.splash_attention(q, k, v, segment_ids, window, block_size, interpret=interpret)
    if implementation == "cudnn":
        return cudnn.cudnn_attention(q, k, v, segment_ids, window, block_size)
    return banded_attention(q, k, v, segment_ids, window, block_size)


def choose_implementation(q: Array, block_size: int | None, implementation: Implementation) -> Implementation:
    """What "auto" stands for here, or a named one that can run.

    Raises:
        ValueError: it cannot.
    """
    obstacle = {"splash": splash.obstacle, "cudnn": cudnn.obstacle}.get(implementation, lambda q, block_size: None)
    if reason := obstacle(q, block_size):
        raise ValueError(f"attention: implementation={implementation!r} cannot run: {reason}")
    if implementation != "auto":
        return implementation
    platform = jax.default_backend()
    if platform == "tpu" and on_one_device() and splash.obstacle(q, block_size) is None:
        return "splash"
    # ROCm calls itself a GPU too, and has no cuDNN.
    if (
        platform == "gpu"
        and "cuda" in jax.devices()[0].client.platform_version
        and cudnn.obstacle(q, block_size) is None
    ):
        return "cudnn"
    return "xla"


def _check_shapes(q, k, v, segment_ids, window) -> None:
    if q.ndim != 4:
        raise ValueError(f"attention: q has shape {q.shape}: it must be [b, t, h, p]")
    b, t, h, p = q.shape
    if k.ndim != 4 or k.shape[:2] != (b, t) or k.shape[3] != p or k.shape[2] < 1 or h % k.shape[2]:
        raise ValueError(
            f"attention: k has shape {k.shape}; with q {q.shape} it must be [{b}, {t}, g, {p}], g dividing {h}"
        )
    if v.shape != k.shape:
        raise ValueError(f"attention: v has shape {v.shape}: it must be that of k, {k.shape}")
    if segment_ids is not None and segment_ids.shape != (b, t):
        raise ValueError(f"attention: segment_ids has shape {segment_ids.shape}; with q {q.shape} it must be {(b, t)}")
    if window is not None and window < 0:
        raise ValueError(f"attention: window={window} must be None or at least 0")
