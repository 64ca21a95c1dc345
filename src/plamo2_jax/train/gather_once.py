"""Gradients with parameters that are gathered once per step: ZeRO-1 and ZeRO-2 (arXiv:1910.02054).

Each device gathers all parameters before the first micro-batch and computes the gradients of its own rows. With ZeRO-1, it adds up whole
gradients over the micro-batches, and devices send them once per step. With ZeRO-2, devices send the gradients of each micro-batch, and
each adds up its part. With bfloat16, a device holds these bytes per parameter: 2 for all matrices, 2 for the gradients of a micro-batch,
and with ZeRO-1 4 for the sum of the gradients.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class GatherOnce:
    """How devices share the gradients of a step.

    Raises:
        ShardingError: The mesh divides tokens or heads.
    """

    mesh: Mesh
    shardings: Any
    """Tree of the shardings of the parameters, and of the resulting gradients."""
    logical_axes: Any
    """Tree of the axis names of the parameters."""
    dtype: jnp.dtype
    """dtype of the activations. Matrices are gathered in this dtype, and the gradients of a micro-batch are sent in it. All other
    parameters are gathered in float32. So are embedding and head, because each device adds up their gradients from several chunks of the
    loss."""
    sends_each: bool = False
    """Whether the gradients of each micro-batch are sent (ZeRO-2), instead of the sum of all (ZeRO-1)."""

    def __post_init__(self) -> None:
        sizes = self.mesh.shape
        divided = [f"{name}={sizes[name]}" for name in (axes.SEQUENCE, axes.TENSOR) if sizes[name] > 1]
        if divided:
            name = "zero2" if self.sends_each else "zero1"
            raise ShardingError(
                f'sharding="{name}" is not allowed with mesh.{" and mesh.".join(divided)}: each device computes whole rows. '
                "Use fsdp_tensor, or set these axes to 1"
            )

    def after_each(self, grads: Any) -> Any:
        """Return what a device adds up of the gradients of its rows of a micro-batch. To call on each device."""
        if not self.sends_each:
            return grads

        def send(names: axes.Axes, grad: jax.Array, spec: PartitionSpec) -> jax.Array:
            dtype = self.dtype if axes.is_matrix(names) else grad.dtype
            return _scatter(grad.astype(dtype), spec).astype(grad.dtype)

        # Without the barrier, XLA moves the messages behind the loop over micro-batches, which would need the whole sums again.
        return jax.lax.optimization_barrier(axes.map_with_axes(send, self.logical_axes, grads, self._specs))

    def divide(self, sums: Sums) -> Sums:
        """Return a function that computes the same sums, on each device with all parameters and its own rows.

        Random keys differ between devices, so noise is not the same as with other shardings.

        Args:
            sums: Function for one device, which calls `after_each`. It is called inside `jax.shard_map`.
        """
        specs = self._specs

        def on_each_device(params: Any, batch: Batch, rng: jax.Array, frozen: Any) -> tuple[jax.Array, Metrics, Any]:
            whole = axes.map_with_axes(self._gather, self.logical_axes, params, specs)
            rng = jax.random.fold_in(rng, jax.lax.axis_index(AXES))
            loss, metrics, grads = sums(whole, batch, rng, frozen)
            loss, metrics = jax.lax.psum((loss, metrics), AXES)
            return loss, metrics, grads if self.sends_each else jax.tree.map(_scatter, grads, specs)

        return jax.shard_map(
            on_each_device,
            mesh=self.mesh,
            in_specs=(specs, PartitionSpec(axes.ROWS), PartitionSpec(), PartitionSpec()),
            out_specs=(PartitionSpec(), PartitionSpec(), specs),
            # Splash attention and Pallas kernels do not report over which mesh axes their outputs vary (jax 0.10.2).
            check_vma=False,
        )

    @property
    def _specs(self) -> Any:
        return jax.tree.map(lambda sharding: sharding.spec, self.shardings)

    def _gather(self, names: axes.Axes, leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        if axes.is_matrix(names) and axes.VOCAB not in names:
            leaf = leaf.astype(self.dtype)
        for position, over in enumerate(spec):
            if over is not None:
                leaf = jax.lax.all_gather(leaf, over, axis=position, tiled=True)
        return leaf


def _scatter(grad: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Return this device's part of the sum over devices."""
    over = {name for entry in spec if entry is not None for name in entry}
    for position, entry in enumerate(spec):
        if entry is not None:
            grad = jax.lax.psum_scatter(grad, entry, scatter_dimension=position, tiled=True)
    return jax.lax.psum(grad, tuple(name for name in AXES if name not in over))
