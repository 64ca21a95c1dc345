"""Gradients with parameters that are gathered once per step: ZeRO-1 (arXiv:1910.02054).

Each device gathers all parameters before the first micro-batch, adds up the gradients of its own rows over all micro-batches, and sends
them once. So a step moves the bytes of the parameters once, however many micro-batches it has. In return, each device holds all matrices in
the activation dtype, their gradients in that dtype, and the sum of the gradients in float32: 8 bytes per parameter with bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from plamo2_jax.data.batch import Batch
from plamo2_jax.model import axes
from plamo2_jax.sharding.mesh import AXES
from plamo2_jax.sharding.rules import ShardingError
from plamo2_jax.train.task import Metrics

Sums = Callable[[Any, Batch, jax.Array, Any], tuple[jax.Array, Metrics, Any]]
"""`(params, batch, rng, frozen) -> (loss, metrics, gradients)`, each a sum over the rows of the batch."""


def gather_once(sums: Sums, mesh: Mesh, shardings: Any, logical_axes: Any, dtype: jnp.dtype) -> Sums:
    """Return a function that computes the same sums, on each device with all parameters and its own rows.

    Random keys differ between devices, so noise is not the same as with other shardings.

    Args:
        sums: Function for one device. It is called inside `jax.shard_map`.
        shardings: Tree of the shardings of the parameters, and of the resulting gradients.
        logical_axes: Tree of the axis names of the parameters.
        dtype: dtype of the activations. Matrices are gathered in this dtype. All other parameters are gathered in float32. So are embedding
            and head, because each device adds up their gradients from several chunks of the loss.

    Raises:
        ShardingError: The mesh divides tokens or heads.
    """
    divided = [f"{name}={mesh.shape[name]}" for name in (axes.SEQUENCE, axes.TENSOR) if mesh.shape[name] > 1]
    if divided:
        raise ShardingError(
            f'sharding="zero1" is not allowed with mesh.{" and mesh.".join(divided)}: each device computes whole rows. '
            "Use fsdp_tensor, or set these axes to 1"
        )
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)

    def gather(names: axes.Axes, leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        if axes.is_matrix(names) and axes.VOCAB not in names:
            leaf = leaf.astype(dtype)
        for position, over in enumerate(spec):
            if over is not None:
                leaf = jax.lax.all_gather(leaf, over, axis=position, tiled=True)
        return leaf

    def scatter(grad: jax.Array, spec: PartitionSpec) -> jax.Array:
        over = {name for entry in spec if entry is not None for name in entry}
        for position, entry in enumerate(spec):
            if entry is not None:
                grad = jax.lax.psum_scatter(grad, entry, scatter_dimension=position, tiled=True)
        return jax.lax.psum(grad, tuple(name for name in AXES if name not in over))

    def on_each_device(params: Any, batch: Batch, rng: jax.Array, frozen: Any) -> tuple[jax.Array, Metrics, Any]:
        whole = axes.map_with_axes(gather, logical_axes, params, specs)
        rng = jax.random.fold_in(rng, jax.lax.axis_index(AXES))
        loss, metrics, grads = sums(whole, batch, rng, frozen)
        loss, metrics = jax.lax.psum((loss, metrics), AXES)
        return loss, metrics, jax.tree.map(scatter, grads, specs)

    return jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(specs, PartitionSpec(axes.ROWS), PartitionSpec(), PartitionSpec()),
        out_specs=(PartitionSpec(), PartitionSpec(), specs),
        # Splash attention and Pallas kernels do not report over which mesh axes their outputs vary (jax 0.10.2).
        check_vma=False,
    )
