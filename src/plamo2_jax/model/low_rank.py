"""Low-rank adapters (LoRA, arXiv:2106.09685) as leaves of a parameter tree.

    x W'  =  x W + s · (drop(x) A) B

W is not changed. Neither the sum W + s · A B nor a gradient of the size of W is ever computed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from plamo2_jax.model import axes
from plamo2_jax.model.outputs_first import OutputsFirst
from plamo2_jax.model.quantized import QuantizedArray


class LowRank(struct.PyTreeNode):
    """A parameter with an adapter. All arrays may have an additional first axis (layers), which a scan or an index removes."""

    base: Float[Array, "*w"] | OutputsFirst | QuantizedArray
    """W, in any dtype."""
    a: Float[Array, "*inputs r"]
    b: Float[Array, " r *outputs"]
    """The outputs are the axes of the parameter that its product does not sum over, in their order."""
    key: Array | None
    """Random key of the dropout; None: no dropout."""
    contracted: tuple[int, ...] = struct.field(pytree_node=False)
    """Contraction axes of the parameter, counted from the end: -1 is the last axis."""
    scale: float = struct.field(pytree_node=False)
    """The factor s of the adapter."""
    dropout: float = struct.field(pytree_node=False, default=0.0)
    """Dropout rate of the adapter's inputs, applied to each feature of each token."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.base.shape

    def __getitem__(self, index: Any) -> LowRank:
        """Index the first axis of all arrays."""
        return jax.tree.map(lambda array: array[index], self)

    def astype(self, dtype: jnp.dtype) -> LowRank:
        """Cast the base. The adapter keeps its dtype."""
        return self.replace(base=self.base.astype(dtype))

    def axes_of(self, names: axes.Axes) -> LowRank:
        """Return the axis names of each array; `names` are the axis names of the parameter."""
        base = self.base.axes_of(names) if isinstance(self.base, OutputsFirst | QuantizedArray) else names
        a, b = factor_axes(names, self.contracted)
        key = None if self.key is None else a[: names[0] == axes.LAYERS]
        return self.replace(base=base, a=a, b=b, key=key)


def factor_axes(names: axes.Axes, contracted: tuple[int, ...]) -> tuple[axes.Axes, axes.Axes]:
    """Return the axis names of A and B for a parameter with these axis names and contraction axes (counted from the end)."""
    lead = names[: names[0] == axes.LAYERS]
    inputs = [len(names) + i for i in contracted]
    outputs = (name for i, name in enumerate(names) if i not in inputs and name != axes.LAYERS)
    return (*lead, *(names[i] for i in inputs), axes.RANK), (*lead, axes.RANK, *outputs)
