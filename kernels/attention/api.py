"""`attention`: causal self-attention of whole rows, with a choice of implementations and memory linear in the row length.

A query sees a key if both are in the same segment and `0 <= distance <= window`: the last `window` tokens and itself (window + 1 keys), as
in the public PLaMo 2 code. Padding sees only padding, so every query has a key and no row of the softmax is empty.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from plamo2_kernels.attention import cudnn, splash
from plamo2_kernels.attention.xla import banded_attention
from plamo2_kernels.devices import on_one_device
from plamo2_kernels.errors import ImplementationError

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
    """Return causal self-attention. Query head i reads key/value head i // (h // g), and scores are scaled by p^-0.5.

    Args:
        q, k, v: Queries, keys and values.
        segment_ids: Documents and padding (0); None: one document per row.
        window: Number of past tokens that a query sees besides itself; None: all.
        implementation: "auto" selects by platform; "splash" runs on TPU, "cudnn" on NVIDIA GPUs, "xla" everywhere.
        block_size: Number of queries computed at a time. Results do not depend on it beyond rounding. None: by window or platform.
        interpret: Run splash in the interpreter, on any platform.

    Returns:
        The attention output in the dtype of q. The softmax is in float32.

    Raises:
        ValueError: Shapes do not fit together, or the implementation is unknown.
        ImplementationError: The implementation cannot run.
    """
    if implementation not in get_args(Implementation):
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"attention: implementation={implementation!r} must be one of {names}")
    _check_shapes(q, k, v, segment_ids, window)
    implementation = choose_implementation(q, block_size, implementation)
    if implementation == "splash":
        return splash.splash_attention(q, k, v, segment_ids, window, block_size, interpret=interpret)
    computed = cudnn.cudnn_attention if implementation == "cudnn" else banded_attention
    return checkpoint_name(computed(q, k, v, segment_ids, window, block_size), splash.CHECKPOINT_NAME)


def choose_implementation(q: Array, block_size: int | None, implementation: Implementation) -> Implementation:
    """Return the implementation that "auto" selects here, or the given one if it can run.

    Raises:
        ImplementationError: The given implementation cannot run.
    """
    obstacle = {"splash": splash.obstacle, "cudnn": cudnn.obstacle}.get(implementation, lambda q, block_size: None)
    if reason := obstacle(q, block_size):
        raise ImplementationError(f"attention: implementation={implementation!r} cannot run: {reason}")
    if implementation != "auto":
        return implementation
    platform = jax.default_backend()
    if platform == "tpu" and on_one_device() and splash.obstacle(q, block_size) is None:
        return "splash"
    # ROCm devices are also of platform "gpu", but have no cuDNN.
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
        raise ValueError(f"attention: v has shape {v.shape}: it must have the shape of k, {k.shape}")
    if segment_ids is not None and segment_ids.shape != (b, t):
        raise ValueError(f"attention: segment_ids has shape {segment_ids.shape}; with q {q.shape} it must be {(b, t)}")
    if window is not None and window < 0:
        raise ValueError(f"attention: window={window} must be None or at least 0")
