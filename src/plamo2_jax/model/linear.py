"""Products of activations and weights. The model multiplies by every weight matrix through this module."""

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
from plamo2_jax.model.quantized import QuantizedArray, quantize_activations
from plamo2_kernels.precision import product_precision

# Up to this number of tokens, parts are multiplied in one product.
_FEW_TOKENS = 64
Weight = Array | QuantizedArray | LowRank
"""The types that a weight matrix may have in a parameter tree."""


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
        module: Module that owns the weight.
        name: Name of the weight in the module.
        spec: Einsum of `x` and the weight, such as "btd,dhp->bthp". The weight `contracts` the axes that the einsum sums over.
        x: Activations.
        init: Initializer.
        sizes: Size of each axis of the weight by its name, in order. If the first name is None, that axis stacks several weights, and it
            has no letter in `spec`.

    Returns:
        The product in the dtype of `x`, or a tuple of the products with the stacked weights.
    """
    weight = parameter(module, name, init, sizes, contracts=contracted(spec, sizes))
    product = _multiply_parts if None in sizes else multiply
    return product(spec, x, weight)


def multiply(
    spec: str, x: Float[Array, "*x"], weight: Weight, preferred_element_type: jnp.dtype | None = None
) -> Float[Array, "*y"]:
    """Multiply activations by a weight.

    Args:
        spec: Einsum of `x` and the weight.
        x: Activations. The product is computed in their dtype: float32 means true float32 products on all platforms.
        weight: Value of a parameter.
        preferred_element_type: dtype of the result; None: the dtype of `x`.
    """
    einsum = functools.partial(
        jnp.einsum, precision=product_precision(x.dtype), preferred_element_type=preferred_element_type
    )
    if isinstance(weight, LowRank):
        base = multiply(spec, x, weight.base, preferred_element_type)
        low, up = _adapter_specs(spec)
        return base + einsum(up, _lower(low, x, weight), weight.b.astype(x.dtype))
    if isinstance(weight, QuantizedArray):
        if weight.activations is not None:
            values, scales = quantize_activations(x, _summed_axes(spec), weight.activations)
            x = (values.astype(jnp.float32) * scales).astype(x.dtype)
        return einsum(spec, x, weight.dequantize(x.dtype))
    return einsum(spec, x, weight.astype(x.dtype))


def _summed_axes(spec: str) -> tuple[int, ...]:
    """Return the axes of the activations that an einsum sums over."""
    operands, result = spec.split("->")
    return tuple(i for i, letter in enumerate(operands.split(",")[0]) if letter not in result)


def _multiply_parts(spec: str, x: Float[Array, "*x"], weight: Weight) -> tuple[Float[Array, "*y"], ...]:
    """Multiply by each of the weights that are stacked along the first axis. They share the factor A of an adapter."""
    if not isinstance(weight, LowRank):
        parts = weight.shape[0]
        if x.shape[0] * x.shape[1] <= _FEW_TOKENS and not isinstance(weight, QuantizedArray):
            # XLA on CPU would copy every part out of the weight, which takes longer than a product with few tokens.
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
    """Return s · drop(x) A of an adapter."""
    if weight.key is not None:
        kept = jax.random.bernoulli(weight.key, 1 - weight.dropout, x.shape)
        x = jnp.where(kept, x / (1 - weight.dropout), 0)
    return multiply(spec, x, weight.a) * weight.scale


def _adapter_specs(spec: str) -> tuple[str, str]:
    """Return the einsums with A [*inputs, r] and B [r, *outputs] that replace an einsum with a weight. The letter R stands for r."""
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
    """Return the names of the weight's axes that an einsum sums over. An axis named None has no letter in `spec`."""
    operands, result = spec.split("->")
    named = [name for name in names if name is not None]
    letters = operands.split(",")[1]
    return tuple(name for name, letter in zip(named, letters, strict=True) if letter not in result)


def array_axes(logical_axes: Any, params: Any) -> Any:
    """Return the axis names of every array in a parameter tree, including the arrays inside quantized weights and adapters.

    Args:
        logical_axes: Tree of the axis names of each parameter (`model.logical_axes`).
        params: Parameters, or their shapes.

    Returns:
        A tree with the structure of `params`.
    """

    def one(names: Axes, weight: Weight) -> Any:
        return weight.axes_of(names) if isinstance(weight, QuantizedArray | LowRank) else names

    return map_with_axes(one, logical_axes, params)
