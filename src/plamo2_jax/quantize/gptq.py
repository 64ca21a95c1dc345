"""GPTQ (arXiv:2210.17323): round column by column, and correct the columns that follow for the error of each."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_jax.quantize.rounding import Kind, round_values, spread


@functools.partial(jax.jit, static_argnames=("kind", "act_order", "block"))
def gptq(
    weight: Float[Array, "z c"],
    hessian: Float[Array, "c c"],
    scales: Float[Array, "z groups"],
    *,
    kind: Kind,
    damping: float = 0.01,
    act_order: bool = True,
    block: int = 128,
) -> Float[Array, "z c"]:
    """Return values whose products with the inputs are close to the products of the weight, as float32.

    The scales are fixed before, so groups stay contiguous in any order of columns (`static_groups` of the public code).

    Args:
        weight: Matrix to quantize, float32.
        hessian: Second moment X Xᵀ of the inputs, in any scale. An input that was always 0 gets weights of 0.
        scales: Scale of each group.
        kind: dtype of the values.
        damping: Part of the Hessian's mean diagonal that is added to the diagonal.
        act_order: Begin with the columns with the largest diagonal entries of the Hessian.
        block: Number of columns after which the corrections are applied to all later columns.
    """
    rows, columns = weight.shape
    diagonal = jnp.diagonal(hessian)
    dead = diagonal == 0
    order = jnp.argsort(-diagonal, stable=True) if act_order else jnp.arange(columns)
    spare = -columns % block
    weight = jnp.pad(jnp.where(dead, 0, weight)[:, order], ((0, 0), (0, spare)))
    each = jnp.pad(spread(scales, columns)[:, order], ((0, 0), (0, spare)), constant_values=1)
    hessian = hessian + jnp.diag(jnp.where(dead, 1.0, 0.0) + damping * jnp.mean(diagonal))
    factor = _upper_factor_of_inverse(hessian[order][:, order])
    factor = jnp.pad(factor, ((0, spare), (0, spare))) + jnp.diag(
        jnp.pad(jnp.zeros(columns), (0, spare), constant_values=1.0)
    )

    def do_block(number: int, state: tuple) -> tuple:
        weight, values = state
        start = number * block
        local = jax.lax.dynamic_slice(weight, (0, start), (rows, block))
        local_scales = jax.lax.dynamic_slice(each, (0, start), (rows, block))
        local_factor = jax.lax.dynamic_slice(factor, (start, start), (block, block))

        def do_column(i: int, state: tuple) -> tuple:
            local, rounded, errors = state
            column, scale = local[:, i], local_scales[:, i]
            found = round_values((column / scale)[:, None], kind)[:, 0]
            error = (column - found * scale) / local_factor[i, i]
            # The factor is upper triangular, so columns before i do not change.
            local = local - error[:, None] * local_factor[i][None, :]
            return local, rounded.at[:, i].set(found), errors.at[:, i].set(error)

        empty = jnp.zeros((rows, block), weight.dtype)
        _, rounded, errors = jax.lax.fori_loop(0, block, do_column, (local, empty, empty))
        later = jax.lax.dynamic_slice(factor, (start, 0), (block, columns + spare))
        weight = weight - jnp.dot(errors, later, precision="highest")
        return weight, jax.lax.dynamic_update_slice(values, rounded, (0, start))

    blocks = (columns + spare) // block
    _, values = jax.lax.fori_loop(0, blocks, do_block, (weight, jnp.zeros_like(weight)))
    return jnp.zeros((rows, columns), weight.dtype).at[:, order].set(values[:, :columns])


def _upper_factor_of_inverse(hessian: Float[Array, "c c"]) -> Float[Array, "c c"]:
    """Return the upper triangular U with inv(H) = Uᵀ U.

    With the rows and columns of H in reverse order, H = R Rᵀ for an upper triangular R, and U = inv(R). This needs one factorization
    instead of two and an inverse.
    """
    lower = jnp.linalg.cholesky(hessian[::-1, ::-1])
    identity = jnp.eye(len(hessian), dtype=hessian.dtype)
    return jax.scipy.linalg.solve_triangular(lower, identity, lower=True)[::-1, ::-1]
