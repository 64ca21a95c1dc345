"""Depthwise causal convolution of a row in shards: a halo of k-1 inputs."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.conv1d import causal_conv1d
from plamo2_kernels.conv1d.api import Activation
from plamo2_kernels.sequence.halo import preceding


def sharded_causal_conv1d(
    x: Float[Array, "b t *c"],
    weight: Float[Array, "*c k"],
    *,
    axis_name: str,
    segment_ids: Int[Array, "b t"] | None = None,
    activation: Activation | None = None,
) -> Float[Array, "b t *c"]:
    """`causal_conv1d` of this shard's tokens, without a state before the row or after it.

    The shard is convolved as if nothing preceded it. Its first k-1 tokens, the only ones that others reach, are then done again in a
    short row of their own with the k-1 inputs before them: a halo in front of the shard itself would cost a copy of it. The halo keeps
    its places and its segment ids, so padding and returning ids mean what they mean in a whole row.
    """
    y, _ = causal_conv1d(x, weight, segment_ids=segment_ids, activation=activation)
    halo = weight.shape[-1] - 1
    if lax.axis_size(axis_name) == 1 or halo == 0:
        return y
    reached = min(halo, x.shape[1])

    def short_row(v):
        return jnp.concatenate([preceding(v, halo, axis_name), v[:, :reached]], axis=1)

    short_segments = None if segment_ids is None else short_row(segment_ids)
    short, _ = causal_conv1d(short_row(x), weight, segment_ids=short_segments, activation=activation)
    return lax.dynamic_update_slice_in_dim(y, short[:, halo:], 0, axis=1)
