"""`ssd`: the selective scan, with a choice of implementations."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from plamo2_kernels.devices import on_one_device
from plamo2_kernels.segments import segment_ordinals
from plamo2_kernels.ssd.pallas_gpu import ssd_pallas_gpu
from plamo2_kernels.ssd.pallas_tpu import ssd_pallas_tpu
from plamo2_kernels.ssd.reference import ssd_reference
from plamo2_kernels.ssd.step import ssd_step
from plamo2_kernels.ssd.xla import ssd_xla

Implementation = Literal["auto", "reference", "xla", "pallas_tpu", "pallas_gpu"]

# Default number of tokens per chunk of "xla".
_CHUNK_SIZE = {
    # Measured for b=4 t=512 h=8 p=n=64, forward alone and with backward: 16 takes 0.9 and 1.1 times as long, 64 takes 1.2 and 1.1.
    "cpu": 32,
    # Not measured on a GPU.
    "gpu": 128,
    # By the v5p compiler's cycles per token at h=64 p=128 n=64, 128 and 512 take 1.01 and 1.1 times as long (forward alone: 1.2 and 0.96).
    "tpu": 256,
}


def ssd(
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    initial_state: Float[Array, "b h p n"] | None = None,
    continues: Bool[Array, " b"] | None = None,
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
    interpret: Any = False,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"]]:
    """Return the selective scan of Mamba-2 (arXiv:2405.21060): S_t = exp(dt_t A) S_{t-1} + dt_t x_t ⊗ B_t, y_t = S_t C_t + D x_t.

    Segments: a token whose segment differs from the segment of the previous token starts from a zero state. Padding (segment 0) does not
    change the state, and its y is meaningless. The initial state continues the first token's segment.
    Every implementation clamps the log-decay dt A from below at -160 ln 2, where its exponential is 0 in float32 (`decay.log_decay`).

    Args:
        x: Inputs of any float dtype.
        dt: Step sizes, already positive (after softplus).
        A: Decay rates, negative.
        B: Input projections. h must be a multiple of g; head i uses group i // (h // g).
        C: Output projections.
        D: Skip weights.
        segment_ids: Documents and padding of each row; None: one document per row.
        initial_state: State before the first token; None: zero.
        continues: Rows that use their initial state; the others start from zero. None: all rows.
        chunk_size: Tokens per chunk for the chunked implementations; None: a default for the platform.
        implementation: "auto" selects the one-token update for t = 1, "pallas_tpu" on a single TPU, else "xla". Any other name selects
            that implementation.
        interpret: Run a Pallas kernel in the interpreter, on any platform: True, or `pltpu.InterpretParams()` for the simulated TPU.

    Returns:
        y in the dtype of x, and the state after the last token in float32 (float64 if x is float64).

    Raises:
        ValueError: Shapes do not fit together, or the implementation is unknown.
        ImplementationError: The implementation cannot run with these dtypes or this chunk size.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"ssd: implementation={implementation!r} must be one of {', '.join(get_args(Implementation))}")
    _check_shapes(x, dt, A, B, C, D, segment_ids, initial_state)
    b, t, h, p = x.shape
    # At least float32, because bfloat16 cannot represent decays close to 1.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((b, h, p, B.shape[-1]), dtype)
    initial_state, dt, A, D = (v.astype(dtype) for v in (initial_state, dt, A, D))
    ordinals = None
    if segment_ids is not None:
        dt = jnp.where((segment_ids != 0)[..., None], dt, 0)
        ordinals = segment_ordinals(segment_ids)
    one_token = implementation == "auto" and t == 1
    if continues is not None and not one_token:
        initial_state = jnp.where(continues[:, None, None, None], initial_state, 0)
    if implementation == "reference":
        return ssd_reference(x, dt, A, B, C, D, ordinals, initial_state)
    if implementation == "auto":
        if one_token:
            y, state = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, initial_state, continues)
            return y[:, None], state
        # On GPU "xla", because the implementations have not been compared on a GPU.
        on_tpu = jax.default_backend() == "tpu" and x.dtype in (jnp.bfloat16, jnp.float32) and on_one_device()
        implementation = "pallas_tpu" if on_tpu and not (chunk_size or 128) % 128 else "xla"
    if implementation == "pallas_tpu":
        return ssd_pallas_tpu(x, dt, A, B, C, D, ordinals, initial_state, chunk_size, interpret=interpret)
    if implementation == "pallas_gpu":
        return ssd_pallas_gpu(x, dt, A, B, C, D, ordinals, initial_state, chunk_size, interpret=interpret)
    chunk_size = chunk_size or _CHUNK_SIZE.get(jax.default_backend(), 128)
    return ssd_xla(x, dt, A, B, C, D, ordinals, initial_state, chunk_size)


def _check_shapes(x, dt, A, B, C, D, segment_ids, initial_state) -> None:
    if x.ndim != 4 or x.shape[1] < 1:
        raise ValueError(f"ssd: x has shape {x.shape}: it must be [b, t, h, p] with t >= 1")
    if B.ndim != 4 or x.shape[2] % B.shape[2]:
        raise ValueError(f"ssd: B has shape {B.shape}: it must be [b, t, g, n] with g dividing h={x.shape[2]}")
    b, t, h, p = x.shape
    expected = {
        "dt": (dt, (b, t, h)),
        "A": (A, (h,)),
        "B": (B, (b, t, *B.shape[2:])),
        "C": (C, B.shape),
        "D": (D, (h,)),
        "segment_ids": (segment_ids, (b, t)),
        "initial_state": (initial_state, (b, h, p, B.shape[3])),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"ssd: {name} has shape {array.shape}; with x {x.shape} it must be {shape}")
