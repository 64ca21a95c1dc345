"""Weight matrices stored as [outputs, inputs], as leaves of a parameter tree.

A CPU multiplies few rows by such a matrix faster: each output reads its weights in order.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from plamo2_jax.model import axes
from plamo2_jax.model.quantized import stored_order


class OutputsFirst(struct.PyTreeNode):
    """A parameter whose contraction axes come last in memory. The array may have an additional first axis (layers)."""

    values: Float[Array, "*outputs_and_inputs"]
    contracted: tuple[int, ...] = struct.field(pytree_node=False)
    """Contraction axes of the parameter, counted from the end: -1 is the last axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.values.shape[i] for i in self._order())

    @property
    def size(self) -> int:
        """Number of values."""
        return self.values.size

    def pick(self, indices: tuple[np.ndarray, ...]) -> Float[Array, " i"]:
        """Return the values at these indices, one array for each axis of the parameter."""
        return self.values[tuple(indices[i] for i in stored_order(self.values.ndim, self.contracted))]

    def array(self) -> Float[Array, "*w"]:
        """Return the parameter as an array."""
        return self.values.transpose(self._order())

    def __getitem__(self, index: Any) -> OutputsFirst:
        """Index the first axis, which must not be a contraction axis."""
        return self.replace(values=self.values[index])

    def astype(self, dtype: jnp.dtype) -> OutputsFirst:
        """Cast the array."""
        return self.replace(values=self.values.astype(dtype))

    def axes_of(self, names: axes.Axes) -> OutputsFirst:
        """Return the axis names of the array; `names` are the axis names of the parameter."""
        return self.replace(values=tuple(names[i] for i in stored_order(len(names), self.contracted)))

    def _order(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.argsort(stored_order(self.values.ndim, self.contracted)))


def store_outputs_first(weight: Float[Array, "*w"], contracted: tuple[int, ...]) -> OutputsFirst:
    """Copy a matrix into this layout.

    Args:
        weight: Parameter.
        contracted: Contraction axes, counted from the end, in order.
    """
    return OutputsFirst(jax.block_until_ready(weight.transpose(stored_order(weight.ndim, contracted))), contracted)
