"""Low-rank adapters (LoRA, arXiv:2106.09685) as leaves of a parameter tree.

    x W'  =  x W + s · (drop(x) A) B

The weight W stays as it is. Neither the sum W + s · A B nor a gradient of W's size is ever formed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from plamo2_jax.model import axes
from plamo2_jax.model.quantized import QuantizedArray


class LowRank(struct.PyTreeNode):
    """A parameter with an adapter. All arrays may lead with the same further axis (layers), which a scan or an index takes off."""

    base: Float[Array, "*w"] | QuantizedArray
    """W, in any dtype."""
    a: Float[Array, "*inputs r"]
    b: Float[Array, " r *outputs"]
    """Outputs are the axes of the parameter that its product does not sum over, in its own order."""
    key: Array | None
    """Random key of the dropout; None: nothing is left out."""
    contracted: tuple[int, ...] = struct.field(pytree_node=False)
    """Input axes of the parameter, counted from its end: -1 is the last one."""
    scale: float = struct.field(pytree_node=False)
    """s."""
    dropout: float = struct.field(pytree_node=False, default=0.0)
    """Share of the adapter's inputs that are left out, drawn for each feature of each token."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.base.shape

    def __getitem__(self, index: Any) -> LowRank:
        """Index the leading axis that all arrays have."""
        return jax.tree.map(lambda array: array[index], self)

    def astype(self, dtype: jnp.dtype) -> LowRank:
        """Return the parameter with its base in another dtype; the adapter's stays."""
        return self.replace(base=self.base.astype(dtype))

    def axes_of(self, names: axes.Axes) -> LowRank:
        """Return the axis names of each array; `names` are the parameter's."""
        base = self.base.axes_of(names) if isinstance(self.base, QuantizedArray) else names
        a, b = factor_axes(names, self.contracted)
        return self.replace(
            base=base, a=a, b=b, key=None if self.key is None else a[:1] if names[0] == axes.LAYERS else ()
        )


def factor_axes(names: axes.Axes, contracted: tuple[int, ...]) -> tuple[axes.Axes, axes.Axes]:
    """Return the axis names of A and B for a parameter with these names and input axes (counted from the end)."""
    lead = names[: names[0] == axes.LAYERS]
    inputs = [len(names) + i for i in contracted]
    outputs = (name for i, name in enumerate(names) if i not in inputs and name != axes.LAYERS)
    return (*lead, *(names[i] for i in inputs), axes.RANK), (*lead, axes.RANK, *outputs)
