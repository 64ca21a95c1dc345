"""One token of a Mamba mixer in C++ (native/source/mamba_step.h), for decoding on CPU.

XLA computes the convolution, three projections, three norms, the scan and the gate in about twenty operations. Each operation has a fixed
cost of one to several µs, and the states are copied.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from plamo2_kernels import native


class MambaWeights(NamedTuple):
    """Float32 parameters of a mixer. Projections are stored as [outputs, inputs]; c = h p channels."""

    conv: Float[Array, "h p k"]
    b_proj: Float[Array, "n h p"]
    c_proj: Float[Array, "n h p"]
    dt_down: Float[Array, "r h p"]
    b_norm: Float[Array, " n"]
    c_norm: Float[Array, " n"]
    dt_norm: Float[Array, " r"]
    dt_up: Float[Array, "h r"]
    dt_bias: Float[Array, " h"]
    a_log: Float[Array, " h"]
    skip: Float[Array, " h"]


def mamba_step(
    x: Float[Array, "b h p"],
    z: Float[Array, "b h p"],
    segment_ids: Int[Array, " b"],
    continues: Bool[Array, " b"],
    weights: MambaWeights,
    conv: Float[Array, "b lead h p"],
    ssm: Float[Array, "b h p n"],
    *,
    epsilon: float,
) -> tuple[Float[Array, "b h p"], Float[Array, "b lead h p"], Float[Array, "b h p n"]]:
    """Compute the mixer between its projections of the input and of the output, for one token of each row.

    x = silu(convolution of x); B, C, dt = RMS norms of projections of x, dt = softplus(dt_up dt + dt_bias);
    y = ssd(x, dt, -exp(a_log), B, C, skip) · silu(z).

    `native.require` or `native.is_available` must have been called. A row of the results depends on the same row of the arguments alone.

    Args:
        x: Inputs of the convolution.
        z: Inputs of the gate.
        segment_ids: Segments of the tokens. Padding (0) does not change the states, and its y is 0.
        continues: Rows that use their states; the others start from zero.
        weights: Parameters.
        conv: The last k - 1 inputs of the convolution. XLA reuses its memory for the result.
        ssm: State of the scan. XLA reuses its memory for the result.
        epsilon: Epsilon of the norms.

    Returns:
        y and the new states, float32.
    """
    arrays = (x, z, segment_ids.astype(jnp.int32), continues, *weights, conv, ssm)
    results = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in (x, conv, ssm)]
    first = len(arrays) - 2
    in_place = {first: 1, first + 1: 2}
    return tuple(native.call("plamo2_mamba_step", results, *arrays, in_place=in_place, epsilon=np.float32(epsilon)))
