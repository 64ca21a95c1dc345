"""Product of activations and a weight array, with a gradient that is fast on CPUs.

The gradient of a weight sums over the rows and tokens of a batch. Autodiff writes this as a sum over two axes. XLA on CPU transposes an
operand for it, in the loop that computes the operand, and so reads several arrays column by column. With 2,048 tokens and an MLP of 2,048
channels, this took up to six times as long as the product. As a sum over one axis, it needs no transposed copy.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_kernels.precision import product_precision


def product(
    spec: str, x: Float[Array, "*x"], weight: Float[Array, "*w"], dtype: jnp.dtype, *, rows: str, inputs: str
) -> Float[Array, "*y"]:
    """Compute an einsum of activations and a weight.

    Args:
        spec: Einsum.
        x: Activations.
        weight: Weight, in the dtype of `x`.
        dtype: dtype of the result.
        rows: Letters of the activations that the weight does not have.
        inputs: Letters that the einsum sums over.
    """
    has_other_letters = len(rows + inputs) < x.ndim
    if jax.default_backend() != "cpu" or len(rows) < 2 or has_other_letters:
        return _einsum(spec, dtype, x, weight)
    return _with_gradient(spec, dtype, rows, inputs, x, weight)


def _einsum(spec, dtype, x, weight):
    return jnp.einsum(spec, x, weight, precision=product_precision(x.dtype), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _with_gradient(spec, dtype, rows, inputs, x, weight):
    return _einsum(spec, dtype, x, weight)


def _forward(spec, dtype, rows, inputs, x, weight):
    return _einsum(spec, dtype, x, weight), (x, weight)


def _backward(spec, dtype, rows, inputs, saved, dy):
    x, weight = saved
    (dx,) = jax.vjp(lambda x: _einsum(spec, dtype, x, weight), x)[1](dy)

    def by_autodiff(x, weight, dy):
        return jax.vjp(lambda weight: _einsum(spec, dtype, x, weight), weight)[1](dy)[0]

    # The program may be compiled for another platform. There, rows and tokens must stay two axes, which can be divided over devices.
    on_cpu = functools.partial(_weight_gradient, spec, rows, inputs)
    return dx, jax.lax.platform_dependent(x, weight, dy, cpu=on_cpu, default=by_autodiff)


_with_gradient.defvjp(_forward, _backward)


def _weight_gradient(spec, rows, inputs, x, weight, dy):
    operands, of_y = spec.split("->")
    of_x, of_weight = operands.split(",")
    outputs = "".join(letter for letter in of_weight if letter not in inputs)

    def matrix(array, letters, columns):
        array = array.transpose([letters.index(letter) for letter in rows + columns])
        return array.reshape(math.prod(array.shape[: len(rows)]), -1)

    a, b = matrix(x, of_x, inputs), matrix(dy.astype(x.dtype), of_y, outputs)
    settings = {"precision": product_precision(x.dtype), "preferred_element_type": weight.dtype}
    gradient = jnp.einsum("tk,tn->kn", a, b, **settings)
    order = inputs + outputs
    gradient = gradient.reshape([weight.shape[of_weight.index(letter)] for letter in order])
    return gradient.transpose([order.index(letter) for letter in of_weight])
