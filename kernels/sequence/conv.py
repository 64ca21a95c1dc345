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
    """Compute `causal_conv1d` for the tokens of this shard, without initial and final state.

    The shard is first convolved as if nothing preceded it. Only its first k-1 tokens depend on earlier shards. Their result is computed
    again in a short row with the k-1 inputs before them. Adding a halo to the shard itself would copy the shard. The halo keeps its
    positions and segment ids, so padding and returning ids have the same meaning as in a whole row.
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
