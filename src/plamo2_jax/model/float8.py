"""Weight matrices that a train step multiplies in 8-bit floats, as leaves of a parameter tree."""

from __future__ import annotations

from typing import Any, Literal

import jax
from flax import struct
from jaxtyping import Array, Float

from plamo2_jax.model import axes
from plamo2_kernels.quant import FORWARD, float8_scale

LinearType = Literal["normal", "fp8"]
"""Products of a train step. normal: in the activation dtype. fp8: in 8-bit floats, for the matrices of `uses_float8`."""

# Logits, and the narrow products that create B, C and dt, are sensitive and a small part of the FLOPs.
_KEPT = frozenset({axes.VOCAB, axes.STATE, axes.DT_RANK})


class Float8Weight(struct.PyTreeNode):
    """A float32 parameter whose products are `float8_product`. Both arrays may have an additional first axis (layers)."""

    values: Float[Array, "*w"]
    scales: Float[Array, "*parts"]
    """Scale of each matrix: a stacked parameter (in_proj) has several."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.values.shape

    def __getitem__(self, index: Any) -> Float8Weight:
        """Index the first axis of both arrays, which stacks layers or matrices."""
        return jax.tree.map(lambda array: array[index], self)


def uses_float8(names: axes.Axes) -> bool:
    """Return whether fp8 training multiplies a parameter with these axis names in 8-bit floats: projections and MLP.

    Embedding, head, the projections for B, C and dt, norms and convolutions are not.
    """
    return axes.is_matrix(names) and not _KEPT & set(names)


def with_float8(params: Any, logical_axes: Any) -> Any:
    """Return a parameter tree whose projections and MLP matrices are `Float8Weight`.

    The scales are computed here, for all layers at once: on a mesh, the largest magnitudes of a parameter's parts are reduced once a step.

    Args:
        params: Parameters, float32.
        logical_axes: Tree of the axis names of each parameter (`model.logical_axes`).
    """

    def convert(names: axes.Axes, weight: Array) -> Array | Float8Weight:
        if not uses_float8(names):
            return weight
        shared = tuple(i for i, name in enumerate(names) if name not in (axes.LAYERS, None))
        return Float8Weight(weight, float8_scale(weight, FORWARD, shared))

    return axes.map_with_axes(convert, logical_axes, params)
