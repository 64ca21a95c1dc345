"""Weight matrices quantized to 8 or 4 bits, as leaves of a parameter tree, and activations quantized per token.

    weight = (values - zero points) · scales

A matrix is stored as [outputs, inputs]: its contraction axes come last. Together they form one axis, which is divided into groups with one
scale each. Integer products on CPU are several times faster in this layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from plamo2_jax.errors import PlamoError
from plamo2_jax.model import axes

Bits = Literal[4, 8]
_DTYPES = {4: jnp.int4, 8: jnp.int8}
Activations = Literal["int8", "float8"]
"""dtypes of activations that are quantized in the product. float8 is float8_e4m3fn."""
MAX_FLOAT8 = 448.0
"""Largest finite value of float8_e4m3fn."""


class QuantizedArray(struct.PyTreeNode):
    """A quantized parameter. All arrays may have an additional first axis (layers), which a scan or an index removes."""

    values: Int[Array, "*outputs_and_inputs"] | Float[Array, "*outputs_and_inputs"]
    """The quantized values: int8, int4 or float8_e4m3fn. The outputs are the first axes."""
    scales: Float[Array, "*outputs groups"]
    zero_points: Int[Array, "*outputs groups"] | None
    """The integers that represent 0; None: 0 itself."""
    contracted: tuple[int, ...] = struct.field(pytree_node=False)
    """Contraction axes of the parameter, counted from the end: -1 is the last axis."""
    activations: Activations | None = struct.field(pytree_node=False, default=None)
    """dtype to which the product quantizes the activations of each token (`quantize_activations`); None: they stay as they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.values.shape[i] for i in np.argsort(stored_order(self.values.ndim, self.contracted)))

    def dequantize(self, dtype: jnp.dtype = jnp.float32) -> Float[Array, "*w"]:
        """Return the parameter as an array of `dtype`."""
        numbers = self.values.astype(self.scales.dtype)
        grouped = numbers.reshape(*self.scales.shape, -1)
        if self.zero_points is not None:
            grouped = grouped - self.zero_points[..., None].astype(grouped.dtype)
        stored = (grouped * self.scales[..., None]).reshape(self.values.shape)
        return stored.astype(dtype).transpose(np.argsort(stored_order(self.values.ndim, self.contracted)))

    def __getitem__(self, index: Any) -> QuantizedArray:
        """Index the first axis of all arrays, which must not be a contraction axis."""
        return jax.tree.map(lambda array: array[index], self)

    def astype(self, dtype: jnp.dtype) -> QuantizedArray:
        """Return the parameter unchanged. `dequantize` decides the dtype."""
        del dtype
        return self

    def axes_of(self, names: axes.Axes) -> QuantizedArray:
        """Return the axis names of each array; `names` are the axis names of the parameter."""
        order = stored_order(len(names), self.contracted)
        outputs = tuple(names[i] for i in order[: len(names) - len(self.contracted)])
        # A single group cannot be divided. Several groups are divided like the first contraction axis.
        groups = names[self.contracted[0]] if self.scales.shape[-1] > 1 else None
        scales = (*outputs, groups)
        zero_points = None if self.zero_points is None else scales
        return self.replace(values=tuple(names[i] for i in order), scales=scales, zero_points=zero_points)


def quantize(
    weight: Float[Array, "*w"],
    contracted: tuple[int, ...],
    bits: Bits = 8,
    group_size: int | None = None,
    symmetric: bool = True,
) -> QuantizedArray:
    """Quantize a matrix: round to the nearest integer, with one scale per group from its extreme values.

    Args:
        weight: Parameter to quantize.
        contracted: Contraction axes, counted from the end, in order.
        bits: Bits per value.
        group_size: Number of inputs of an output that share a scale; None: all.
        symmetric: True: no zero points; 0 stays 0, and values are in ±(2^(bits-1) - 1). False: the range of a group, extended to include 0,
            is divided into 2^bits - 1 steps.

    Raises:
        PlamoError: `group_size` does not divide the number of inputs.
    """
    order = stored_order(weight.ndim, contracted)
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


def quantize_float8(weight: Float[Array, "*w"], contracted: tuple[int, ...]) -> QuantizedArray:
    """Quantize a matrix to float8_e4m3fn with one scale per output: the largest magnitude becomes 448.

    Args:
        weight: Parameter to quantize.
        contracted: Contraction axes, counted from the end, in order.
    """
    order = stored_order(weight.ndim, contracted)
    stored = weight.astype(jnp.float32).transpose(order)
    inputs = tuple(range(weight.ndim - len(contracted), weight.ndim))
    values, scales = _to_float8(stored, inputs)
    return QuantizedArray(values, scales.reshape(*stored.shape[: inputs[0]], 1), None, contracted)


def quantize_activations(
    x: Float[Array, "*x"], over: tuple[int, ...], kind: Activations
) -> tuple[Int[Array, "*x"] | Float[Array, "*x"], Float[Array, "*s"]]:
    """Quantize activations symmetrically, with one scale for each index of the axes that are not reduced (each token).

    Args:
        x: Activations.
        over: Axes that the product contracts. They share a scale.
        kind: int8: the largest magnitude becomes 127. float8: it becomes 448.

    Returns:
        The values, int8 or float8_e4m3fn, and float32 scales with axes of size 1 in place of `over`; x is about values · scales.
    """
    x = x.astype(jnp.float32)
    if kind == "float8":
        return _to_float8(x, over)
    most = jnp.max(jnp.abs(x), axis=over, keepdims=True)
    scales = jnp.where(most > 0, most / 127, 1)
    return jnp.clip(jnp.round(x / scales), -127, 127).astype(jnp.int8), scales


def _to_float8(x: Float[Array, "*x"], over: tuple[int, ...]) -> tuple[Float[Array, "*x"], Float[Array, "*s"]]:
    most = jnp.max(jnp.abs(x), axis=over, keepdims=True)
    scales = jnp.where(most > 0, most / MAX_FLOAT8, 1)
    # Values above the largest one would become NaN.
    return jnp.clip(x / scales, -MAX_FLOAT8, MAX_FLOAT8).astype(jnp.float8_e4m3fn), scales


def quantize_params(
    params: Any,
    declarations: Any,
    bits: Bits = 8,
    group_size: int | None = None,
    symmetric: bool = True,
    select: Callable[[axes.Declaration], bool] = lambda declared: axes.is_matrix(declared.names),
) -> Any:
    """Quantize the parameters of a model.

    Args:
        params: Tree of arrays.
        declarations: Tree of `axes.Declaration` (`model.declarations`).
        bits, group_size, symmetric: See `quantize`.
        select: Whether to quantize a parameter; by default all matrices, including embedding and head.
    """

    def one(declared: axes.Declaration, weight: Array) -> Any:
        if not select(declared):
            return weight
        return quantize(weight, contraction_axes(declared), bits, group_size, symmetric)

    return jax.tree.map(one, declarations, params, is_leaf=lambda leaf: isinstance(leaf, axes.Declaration))


def is_quantized(leaf: Any) -> bool:
    """Return whether a node of a parameter tree is a quantized matrix (for `jax.tree.map(..., is_leaf=is_quantized)`)."""
    return isinstance(leaf, QuantizedArray)


def has_quantized(params: Any) -> bool:
    """Return whether a parameter tree has quantized matrices."""
    return any(map(is_quantized, jax.tree.leaves(params, is_leaf=is_quantized)))


def contraction_axes(declared: axes.Declaration) -> tuple[int, ...]:
    """Return the contraction axes of a matrix, counted from the end."""
    # Embedding tables declare no contraction axis, because they are looked up. The logits are a product over their axis embed.
    inputs = declared.contracts or (axes.EMBED,)
    return tuple(i - len(declared.names) for i, name in enumerate(declared.names) if name in inputs)


def stored_order(ndim: int, contracted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of the parameter in the order in which the values are stored: outputs, then inputs."""
    inputs = tuple(ndim + i for i in contracted)
    return (*(i for i in range(ndim) if i not in inputs), *inputs)
