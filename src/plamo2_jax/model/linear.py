"""Products of activations and weights. The model multiplies by every weight matrix through this module."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from plamo2_jax.model.axes import Axes, map_with_axes
from plamo2_jax.model.float8 import Float8Weight
from plamo2_jax.model.low_rank import LowRank
from plamo2_jax.model.outputs_first import OutputsFirst
from plamo2_jax.model.parameters import parameter
from plamo2_jax.model.product import product
from plamo2_jax.model.quantized import QuantizedArray
from plamo2_kernels import native
from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.precision import product_precision
from plamo2_kernels.quant import (
    MOST_FFI_ROWS,
    Implementation,
    few_rows,
    few_rows_product,
    float8_product,
    quantized_products,
)

# Up to this number of tokens, parts are multiplied in one product.
_FEW_TOKENS = 64
INPUTS = "inputs"
"""Flax collection of the activations that `project` multiplies, by the path of the weight. `model.apply(..., mutable=[INPUTS])` returns
them; otherwise nothing is recorded."""
Weight = Array | OutputsFirst | QuantizedArray | LowRank | Float8Weight
"""The types that a weight matrix may have in a parameter tree."""


def project(
    module: nn.Module,
    name: str,
    spec: str,
    x: Float[Array, "*x"],
    init: Callable[..., Array],
    sizes: Mapping[str | None, int],
) -> Float[Array, "*y"] | tuple[Float[Array, "*y"], ...]:
    """Declare a weight and multiply `x` by it, with the module's `product_implementation`.

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
    if not module.is_initializing() and module.is_mutable_collection(INPUTS):
        module.sow(INPUTS, name, x)
    product = _multiply_parts if None in sizes else multiply
    # The name is for rematerialization (`block.recomputed`).
    return checkpoint_name(product(spec, x, weight, implementation=module.product_implementation), name)


def project_together(
    module: nn.Module,
    spec: str,
    x: Float[Array, "*x"],
    init: Callable[..., Array],
    weights: Mapping[str, Mapping[str, int]],
) -> tuple[Float[Array, ...], ...]:
    """Declare several weights with the same einsum and multiply `x` by each of them (`project`).

    Args:
        module: Module that owns the weights.
        spec: Einsum of `x` and a weight.
        x: Activations.
        init: Initializer.
        weights: Maps the name of each weight to the sizes of its axes.
    """
    declared = [
        parameter(module, name, init, sizes, contracts=contracted(spec, sizes)) for name, sizes in weights.items()
    ]
    if not module.is_initializing() and module.is_mutable_collection(INPUTS):
        for name in weights:
            module.sow(INPUTS, name, x)
    implementation = module.product_implementation
    are_quantized = all(isinstance(weight, QuantizedArray) for weight in declared)
    if not are_quantized or len({weight.activations for weight in declared}) > 1:
        return tuple(
            checkpoint_name(multiply(spec, x, weight, implementation=implementation), name)
            for name, weight in zip(weights, declared, strict=True)
        )
    return tuple(y.astype(x.dtype) for y in _multiply_quantized(spec, x, declared, implementation))


def multiply(
    spec: str,
    x: Float[Array, "*x"],
    weight: Weight,
    preferred_element_type: jnp.dtype | None = None,
    *,
    implementation: Implementation = "xla",
) -> Float[Array, "*y"]:
    """Multiply activations by a weight.

    Args:
        spec: Einsum of `x` and the weight.
        x: Activations. The product is computed in their dtype: float32 means true float32 products on all platforms.
        weight: Value of a parameter.
        preferred_element_type: dtype of the result; None: the dtype of `x`.
        implementation: See `quantized_product`. Products with arrays are XLA's, unless this is "ffi", or "auto" and there are few rows of
            float32 on CPU.

    Raises:
        ImplementationError: "ffi" cannot run.
    """
    dtype = x.dtype if preferred_element_type is None else preferred_element_type
    einsum = functools.partial(jnp.einsum, precision=product_precision(x.dtype), preferred_element_type=dtype)
    if isinstance(weight, LowRank):
        base = multiply(spec, x, weight.base, dtype, implementation=implementation)
        low, up = _adapter_specs(spec)
        return base + einsum(up, _lower(low, x, weight), weight.b.astype(x.dtype))
    if isinstance(weight, QuantizedArray):
        return _multiply_quantized(spec, x, [weight], implementation)[0].astype(dtype)
    if isinstance(weight, OutputsFirst):
        return _multiply_outputs_first(spec, x, weight, dtype, implementation)
    if isinstance(weight, Float8Weight):
        return _multiply_float8(spec, x, weight).astype(dtype)
    if multiplies_few_rows(spec, x, weight, implementation):
        return _multiply_few_rows(spec, x, weight).astype(dtype)
    letters = _Letters.of(spec)
    return product(spec, x, weight.astype(x.dtype), dtype, rows=letters.rows, inputs=letters.inputs)


def multiplies_few_rows(spec: str, x: Float[Array, "*x"], weight: Weight, implementation: Implementation) -> bool:
    """Return whether `multiply` calls the C++ kernel for few rows of float32 with an array.

    Raises:
        ImplementationError: `implementation` is "ffi", which cannot run.
    """
    if implementation not in ("auto", "ffi") or not isinstance(weight, jax.Array):
        return False
    letters = _Letters.of(spec)
    reason = few_rows.why_not(x, weight)
    if letters.inputs + letters.outputs != letters.weight and letters.outputs + letters.inputs != letters.weight:
        reason = f"the inputs of {spec} are not next to each other"
    if implementation == "ffi":
        if reason is not None:
            raise ImplementationError(f'product_implementation="ffi" cannot run: {reason}. Use "xla"')
        native.require()
        return True
    # XLA reads the weights for a single row as fast.
    return reason is None and 1 < letters.count_rows(x) <= MOST_FFI_ROWS and native.is_available()


@dataclasses.dataclass(frozen=True)
class _Letters:
    """The letters of an einsum of activations and a weight."""

    x: str
    weight: str
    result: str
    rows: str
    """Letters of the activations that the weight does not have."""
    inputs: str
    """Letters of the weight that the einsum sums over."""
    outputs: str

    @classmethod
    def of(cls, spec: str) -> _Letters:
        operands, result = spec.split("->")
        x, weight = operands.split(",")
        inputs, outputs = ("".join(c for c in weight if (c in result) is out) for out in (False, True))
        return cls(x, weight, result, "".join(c for c in x if c not in weight), inputs, outputs)

    def count_rows(self, x: Array) -> int:
        """Return the number of rows of the activations."""
        return math.prod(x.shape[self.x.index(letter)] for letter in self.rows)

    def flat(self, x: Array) -> Float[Array, "rows k"]:
        """Return the activations as a matrix of rows and inputs."""
        x = x.transpose([self.x.index(letter) for letter in self.rows + self.inputs])
        return x.reshape(math.prod(x.shape[: len(self.rows)]), -1)

    def restore(self, y: Float[Array, "rows n"], x: Array, outputs: tuple[int, ...]) -> Array:
        """Return a product as the einsum does; `outputs` are the sizes of its outputs."""
        y = y.reshape(*(x.shape[self.x.index(letter)] for letter in self.rows), *outputs)
        return y.transpose([(self.rows + self.outputs).index(letter) for letter in self.result])


def _multiply_quantized(
    spec: str, x: Array, weights: Sequence[QuantizedArray], implementation: Implementation
) -> list[Array]:
    """Multiply by weights that quantize activations to the same dtype."""
    letters = _Letters.of(spec)
    outputs = [weight.values.shape[: weight.values.ndim - len(weight.contracted)] for weight in weights]

    # Reshaped without a copy.
    def flat(array: Array | None, n: int) -> Array | None:
        return None if array is None else array.reshape(n, -1)

    matrices = [
        tuple(flat(array, math.prod(sizes)) for array in (weight.values, weight.scales, weight.zero_points))
        for weight, sizes in zip(weights, outputs, strict=True)
    ]
    settings = {"activations": weights[0].activations, "implementation": implementation}
    products = quantized_products(letters.flat(x), matrices, **settings)
    return [letters.restore(y, x, sizes) for y, sizes in zip(products, outputs, strict=True)]


def _multiply_float8(spec: str, x: Array, weight: Float8Weight) -> Array:
    letters = _Letters.of(spec)
    contracted = tuple(tuple(map(operand.index, letters.inputs)) for operand in (letters.x, letters.weight))
    y = float8_product(x, weight.values, weight.scales, contracted)
    return y.transpose([(letters.rows + letters.outputs).index(letter) for letter in letters.result])


def _multiply_outputs_first(
    spec: str, x: Array, weight: OutputsFirst, dtype: jnp.dtype, implementation: Implementation
) -> Array:
    letters = _Letters.of(spec)
    outputs = weight.values.shape[: weight.values.ndim - len(weight.contracted)]
    rows, matrix = letters.flat(x), weight.values.reshape(math.prod(outputs), -1)

    def by_xla(rows, matrix):
        settings = {"precision": product_precision(x.dtype), "preferred_element_type": dtype}
        return jnp.einsum("rk,nk->rn", rows, matrix.astype(x.dtype), **settings)

    def by_ffi(rows, matrix):
        return few_rows_product(rows, matrix, outputs_first=True).astype(dtype)

    reason = few_rows.why_not(rows, matrix)
    if implementation == "ffi":
        if reason is not None:
            raise ImplementationError(f'product_implementation="ffi" cannot run: {reason}. Use "xla"')
        native.require()
        y = by_ffi(rows, matrix)
    elif implementation == "auto" and reason is None and len(rows) <= MOST_FFI_ROWS and native.is_available():
        y = by_ffi(rows, matrix)
    else:
        y = by_xla(rows, matrix)
    return letters.restore(y, x, outputs)


def _multiply_few_rows(spec: str, x: Array, weight: Array) -> Array:
    letters = _Letters.of(spec)
    outputs = tuple(weight.shape[letters.weight.index(letter)] for letter in letters.outputs)
    first = letters.weight == letters.outputs + letters.inputs
    shape = (math.prod(outputs), -1) if first else (-1, math.prod(outputs))
    return letters.restore(few_rows_product(letters.flat(x), weight.reshape(shape), outputs_first=first), x, outputs)


def _multiply_parts(
    spec: str, x: Float[Array, "*x"], weight: Weight, *, implementation: Implementation
) -> tuple[Float[Array, "*y"], ...]:
    """Multiply by each of the weights that are stacked along the first axis. They share the factor A of an adapter."""
    if isinstance(weight, LowRank):
        low, up = _adapter_specs(spec)
        lowered = _lower(low, x, weight)
        base = _multiply_parts(spec, x, weight.base, implementation=implementation)
        # B is [rank, parts, ...].
        return tuple(y + multiply(up, lowered, weight.b[:, i]) for i, y in enumerate(base))
    parts = weight.shape[0]
    operands, result = spec.split("->")
    if isinstance(weight, OutputsFirst | QuantizedArray):
        # The parts are outputs.
        joined = operands.replace(",", ",P") + "->P" + result
        return tuple(multiply(joined, x, weight, implementation=implementation))
    if isinstance(weight, Float8Weight):
        return tuple(multiply(spec, x, weight[i]) for i in range(parts))
    if multiplies_few_rows(spec, x, weight[0], implementation):
        letters = _Letters.of(spec)
        flat = weight.reshape(parts, -1, math.prod(weight.shape[1 + len(letters.inputs) :]))
        products = few_rows_product(letters.flat(x), flat, outputs_first=False)
        return tuple(letters.restore(y, x, weight.shape[1 + len(letters.inputs) :]) for y in products)
    if x.shape[0] * x.shape[1] <= _FEW_TOKENS:
        # XLA on CPU would copy every part out of the weight, which takes longer than a product with few tokens.
        batched = "P" + operands.replace(",", ",P") + "->P" + result
        return tuple(multiply(batched, jnp.broadcast_to(x, (parts, *x.shape)), weight))
    return tuple(multiply(spec, x, weight[i]) for i in range(parts))


def _lower(spec: str, x: Float[Array, "*x"], weight: LowRank) -> Float[Array, "... r"]:
    """Return s · drop(x) A of an adapter."""
    if weight.key is not None:
        kept = jax.random.bernoulli(weight.key, 1 - weight.dropout, x.shape)
        x = jnp.where(kept, x / (1 - weight.dropout), 0)
    return multiply(spec, x, weight.a) * weight.scale


def _adapter_specs(spec: str) -> tuple[str, str]:
    """Return the einsums with A [*inputs, r] and B [r, *outputs] that replace an einsum with a weight. The letter R stands for r."""
    letters = _Letters.of(spec)
    low = "".join(c for c in letters.x if c in letters.result) + "R"
    return f"{letters.x},{letters.inputs}R->{low}", f"{low},R{letters.outputs}->{letters.result}"


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
        return weight.axes_of(names) if isinstance(weight, OutputsFirst | QuantizedArray | LowRank) else names

    return map_with_axes(one, logical_axes, params)
