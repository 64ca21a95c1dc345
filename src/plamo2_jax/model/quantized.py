"""Matrices of 8 or 4 bit integers with scales, as leaves of a parameter tree.

    weight = (values - zero points) · scales

A matrix is stored as [outputs, inputs]: the axes that its product sums over come last, flattened into groups that share a scale. Integer
products on CPU are several times faster in this layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from plamo2_jax.errors import PlamoError
from plamo2_jax.model import axes

Bits = Literal[4, 8]
_DTYPES = {4: jnp.int4, 8: jnp.int8}


class QuantizedArray(struct.PyTreeNode):
    """A quantized parameter. It may lead with more axes (layers), which a scan or an index takes off all its arrays.

    `axes_of` returns one whose fields are axis names instead of arrays.
    """

    values: Int[Array, "*outputs *inputs"]
    """int8 or int4."""
    scales: Float[Array, "*outputs groups"]
    zero_points: Int[Array, "*outputs groups"] | None
    """The integer that stands for 0; None: 0 itself."""
    contracted: tuple[int, ...] = struct.field(pytree_node=False)
    """Axes of the parameter that are inputs, counted from its end: -1 is the last one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.values.shape[i] for i in _inverse(_order(self.values.ndim, self.contracted)))

    @property
    def ndim(self) -> int:
        """Number of the parameter's axes."""
        return self.values.ndim

    def dequantize(self, dtype: jnp.dtype = jnp.float32) -> Float[Array, "*w"]:
        """Return the parameter as an array."""
        numbers = self.values.astype(self.scales.dtype)
        grouped = numbers.reshape(*self.scales.shape, -1)
        if self.zero_points is not None:
            grouped = grouped - self.zero_points[..., None].astype(grouped.dtype)
        stored = (grouped * self.scales[..., None]).reshape(self.values.shape)
        return stored.astype(dtype).transpose(_inverse(_order(self.ndim, self.contracted)))

    def __getitem__(self, index: Any) -> QuantizedArray:
        """Index the first axes, which must not be inputs."""
        return jax.tree.map(lambda array: array[index], self)

    def astype(self, dtype: jnp.dtype) -> QuantizedArray:
        """Return the same parameter: its dtype is that of its values."""
        del dtype
        return self

    def axes_of(self, names: axes.Axes) -> QuantizedArray:
        """Return the axis names of each array, for sharding and counting; `names` are the parameter's."""
        order = _order(len(names), self.contracted)
        outputs = tuple(names[i] for i in order[: len(names) - len(self.contracted)])
        # One group has nothing to divide; several follow the first of the input axes.
        groups = names[self.contracted[0]] if self.scales.shape[-1] > 1 else None
        scales = (*outputs, groups)
        return self.replace(
            values=tuple(names[i] for i in order),
            scales=scales,
            zero_points=None if self.zero_points is None else scales,
        )


def quantize(
    weight: Float[Array, "*w"],
    contracted: tuple[int, ...],
    bits: Bits = 8,
    group_size: int | None = None,
    symmetric: bool = True,
) -> QuantizedArray:
    """Round a matrix to the nearest integers, each group scaled by its largest value.

    Args:
        weight: the parameter.
        contracted: its input axes, counted from the end, in order.
        bits: 8 or 4.
        group_size: inputs of an output that share a scale; None: all of them.
        symmetric: without zero points: 0 stays 0, and values lie in ±(2^(bits-1) - 1). Otherwise the range between a group's smallest
            and largest value is divided into 2^bits - 1 steps.

    Raises:
        ValueError: `group_size` does not divide the number of inputs.
    """
    order = _order(weight.ndim, contracted)
    stored = weight.astype(jnp.float32).transpose(order)
    outputs = stored.shape[: weight.ndim - len(contracted)]
    flat = stored.reshape(*outputs, -1)
    size = group_size or flat.shape[-1]
    if flat.shape[-1] % size:
        raise PlamoError(f"group_size={group_size} is not allowed: it must divide the {flat.shape[-1]} inputs")
    groups = flat.reshape(*outputs, -1, size)
    most, zeros = 2 ** (bits - 1) - 1, None
    if symmetric:
        span, steps = jnp.max(jnp.abs(groups), axis=-1), most
    else:
        low = jnp.minimum(jnp.min(groups, axis=-1), 0)
        span, steps = jnp.maximum(jnp.max(groups, axis=-1), 0) - low, 2**bits - 1
    scales = jnp.where(span > 0, span / steps, 1)
    numbers = groups / scales[..., None]
    if not symmetric:
        zeros = jnp.round(-most - 1 - low / scales)
        numbers += zeros[..., None]
        zeros = zeros.astype(_DTYPES[bits])
    values = jnp.clip(jnp.round(numbers), -most - (not symmetric), most)
    return QuantizedArray(values.astype(_DTYPES[bits]).reshape(stored.shape), scales, zeros, contracted)


def quantize_params(
    params: Any,
    declarations: Any,
    bits: Bits = 8,
    group_size: int | None = None,
    symmetric: bool = True,
    select: Callable[[axes.Declaration], bool] = lambda declared: axes.is_matrix(declared.names),
) -> Any:
    """Quantize parameters; arguments as in `quantize`.

    Args:
        params: tree of arrays.
        declarations: tree of `axes.Declaration` (`model.declarations`).
        bits, group_size, symmetric: as in `quantize`.
        select: which parameters; by default all matrices, embedding and head included.
    """

    def one(declared: axes.Declaration, weight: Array) -> Any:
        if not select(declared):
            return weight
        # A table of embeddings is looked up by row and multiplied along its rows.
        inputs = declared.contracts or (axes.EMBED,)
        contracted = tuple(i - weight.ndim for i, name in enumerate(declared.names) if name in inputs)
        return quantize(weight, contracted, bits, group_size, symmetric)

    return jax.tree.map(one, declarations, params, is_leaf=lambda leaf: isinstance(leaf, axes.Declaration))


def _order(ndim: int, contracted: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each axis of the stored values the parameter's axis: outputs, then inputs."""
    inputs = tuple(ndim + i for i in contracted)
    return (*(i for i in range(ndim) if i not in inputs), *inputs)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(i) for i in range(len(order)))
