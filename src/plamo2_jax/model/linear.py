"""The one product of activations with a weight: every matrix of the model is multiplied here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_jax.model.axes import Axes, map_with_axes
from plamo2_jax.model.low_rank import LowRank
from plamo2_jax.model.parameters import parameter
from plamo2_jax.model.quantized import QuantizedArray
from plamo2_kernels.precision import product_precision

Weight = Array | QuantizedArray | LowRank
"""What a parameter tree may hold in the place of a matrix."""


def project(
    module: nn.Module,
    name: str,
    spec: str,
    x: Float[Array, "*x"],
    init: Callable[..., Array],
    sizes: Mapping[str | None, int],
) -> Float[Array, "*y"] | tuple[Float[Array, "*y"], ...]:
    """Declare a weight and multiply `x` by it.

    Args:
        module: owner of the weight.
        name: key of the weight below the module.
        spec: einsum of `x` and the weight, such as "btd,dhp->bthp". The weight `contracts` the axes that the einsum sums over.
        x: activations.
        init: initializer.
        sizes: size of each axis of the weight by its name, in order. An unnamed first axis is one of unlike parts.

    Returns:
        The product in the dtype of `x`; of a weight of several parts the product with each of them.
    """
    weight = parameter(module, name, init, sizes, contracts=contracted(spec, sizes))
    if None in sizes:
        return _multiply_parts(spec, x, weight)
    return multiply(spec, x, weight)


def multiply(
    spec: str, x: Float[Array, "*x"], weight: Weight, preferred_element_type: jnp.dtype | None = None
) -> Float[Array, "*y"]:
    """Multiply activations by a weight.

    Args:
        spec: einsum of `x` and the weight.
        x: activations. The product is computed in their dtype, which decides its precision.
        weight: value of a parameter.
        preferred_element_type: dtype of the result; None: that of `x`.
    """
    einsum = functools.partial(
        jnp.einsum, precision=product_precision(x.dtype), preferred_element_type=preferred_element_type
    )
    if isinstance(weight, LowRank):
        base = multiply(spec, x, weight.base, preferred_element_type)
        low, up = _adapter_specs(spec)
        return base + einsum(up, _lower(low, x, weight), weight.b.astype(x.dtype))
    if isinstance(weight, QuantizedArray):
        return einsum(spec, x, weight.dequantize(x.dtype))
    return einsum(spec, x, weight.astype(x.dtype))


def _multiply_parts(spec: str, x: Float[Array, "*x"], weight: Weight) -> tuple[Float[Array, "*y"], ...]:
    """`multiply` by each part of a weight that leads with an axis of parts; an adapter's lower half is shared."""
    if not isinstance(weight, LowRank):
        parts = weight.shape[0]
        if x.shape[1] == 1 and not isinstance(weight, QuantizedArray):
            # One token per row: XLA on CPU would copy every part out of the weight, which takes longer than the product.
            operands, result = spec.split("->")
            batched = "P" + operands.replace(",", ",P") + "->P" + result
            return tuple(multiply(batched, jnp.broadcast_to(x, (parts, *x.shape)), weight))
        return tuple(multiply(spec, x, weight[i]) for i in range(parts))
    low, up = _adapter_specs(spec)
    lowered = _lower(low, x, weight)
    base = _multiply_parts(spec, x, weight.base)
    # B is [rank, parts, ...].
    return tuple(y + multiply(up, lowered, weight.b[:, i]) for i, y in enumerate(base))


def _lower(spec: str, x: Float[Array, "*x"], weight: LowRank) -> Float[Array, "... r"]:
    """s · drop(x) A."""
    if weight.key is not None:
        kept = jax.random.bernoulli(weight.key, 1 - weight.dropout, x.shape)
        x = jnp.where(kept, x / (1 - weight.dropout), 0)
    return multiply(spec, x, weight.a) * weight.scale


def _adapter_specs(spec: str) -> tuple[str, str]:
    """The einsums with A [*inputs, r] and B [r, *outputs] that stand for one with a weight; r is the letter R."""
    operands, result = spec.split("->")
    x, weight = operands.split(",")
    inputs, outputs = ("".join(c for c in weight if (c in result) is out) for out in (False, True))
    low = "".join(c for c in x if c in result) + "R"
    return f"{x},{inputs}R->{low}", f"{low},R{outputs}->{result}"


def lookup(weight: Weight, tokens: Int[Array, "b t"], dtype: jnp.dtype) -> Float[Array, "b t d"]:
    """Return the rows of an embedding in `dtype`."""
    rows = weight[tokens]
    # Casting before the lookup would cast the whole table.
    return rows.dequantize(dtype) if isinstance(rows, QuantizedArray) else rows.astype(dtype)


def contracted(spec: str, names: Iterable[str | None]) -> tuple[str, ...]:
    """Return the names of a weight's axes that an einsum of activations and the weight sums over; None stands for no letter."""
    operands, result = spec.split("->")
    named = [name for name in names if name is not None]
    letters = operands.split(",")[1]
    return tuple(name for name, letter in zip(named, letters, strict=True) if letter not in result)


def array_axes(logical_axes: Any, params: Any) -> Any:
    """Return the axis names of every array of a parameter tree, those that quantized weights and adapters are made of too.

    Args:
        logical_axes: tree of the names of each parameter's axes (`model.logical_axes`).
        params: the parameters, or their shapes.

    Returns:
        A tree of the structure of `params`, for `map_with_axes`, `param_shardings` and the like.
    """

    def one(names: Axes, weight: Weight) -> Any:
        return weight.axes_of(names) if isinstance(weight, QuantizedArray | LowRank) else names

    return map_with_axes(one, logical_axes, params)
