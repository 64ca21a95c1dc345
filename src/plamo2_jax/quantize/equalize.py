"""Channel scales that move outliers between activations and weights: AWQ and SmoothQuant.

The inputs of a matrix are divided by a scale per channel, and its columns are multiplied by it. Division is folded into the parameter that
produces the channel, so the model computes the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_jax.quantize.rounding import Kind, absmax_scales, round_to_nearest, spread

_SMALLEST = 1e-4


def awq_scales(
    weights: Sequence[Float[Array, "_ c"]],
    magnitude: Float[Array, " c"],
    error: Callable[[Float[Array, "_ c"]], Float[Array, ""]],
    rounders: Sequence[Callable[[Float[Array, "_ c"]], Float[Array, "_ c"]]],
    steps: int = 20,
) -> Float[Array, " c"]:
    """Search the scales of AWQ (arXiv:2306.00978): the power of the inputs' magnitudes, from 0 to 1, with the smallest error.

    Args:
        weights: Matrices that read the same inputs.
        magnitude: Mean magnitude of each input.
        error: Returns the error of the products for a difference of weights, such as tr(D H Dᵀ).
        rounders: For each matrix, a function that quantizes and dequantizes it.
        steps: Number of powers.
    """
    normal = jnp.clip(magnitude / (jnp.max(magnitude) + 1e-8), _SMALLEST)

    def scales_of(power: Float[Array, ""]) -> Float[Array, " c"]:
        scales = jnp.clip(normal**power, _SMALLEST)
        return scales / jnp.sqrt(jnp.max(scales) * jnp.min(scales))

    def total(power: Float[Array, ""]) -> Float[Array, ""]:
        scales, loss = scales_of(power), 0.0
        for weight, rounded in zip(weights, rounders, strict=True):
            loss += error(rounded(weight * scales) / scales - weight)
        return loss

    powers = jnp.linspace(0, 1, steps)
    return scales_of(powers[jnp.argmin(jax.lax.map(total, powers))])


@functools.partial(jax.jit, static_argnames=("kinds", "groups"))
def awq_scales_by_moment(
    weights: tuple, magnitude: Float[Array, " c"], hessian: Float[Array, "c c"], kinds: tuple, groups: tuple
) -> Float[Array, " c"]:
    """Return `awq_scales` for the error of the products with inputs of the second moment H."""

    def error(difference: Float[Array, "_ c"]) -> Float[Array, ""]:
        return jnp.sum(jnp.dot(difference, hessian, precision="highest") * difference)

    rounders = [functools.partial(_rounded, kind, count) for kind, count in zip(kinds, groups, strict=True)]
    return awq_scales(weights, magnitude, error, rounders)


def _rounded(kind: Kind, groups: int, weight: Float[Array, "z c"]) -> Float[Array, "z c"]:
    scales = absmax_scales(weight, groups, kind)
    return round_to_nearest(weight, scales, kind) * spread(scales, weight.shape[1])


def smoothquant_scales(
    weights: Sequence[Float[Array, "_ c"]], largest: Float[Array, " c"], alpha: float = 0.5
) -> Float[Array, " c"]:
    """Return the scales of SmoothQuant (arXiv:2211.10438, equation 4): max|x|^alpha / max|W|^(1 - alpha) of each channel.

    Args:
        weights: Matrices that read the same inputs.
        largest: Largest magnitude of each input.
        alpha: Part of the difficulty that moves to the weights.
    """
    columns = functools.reduce(jnp.maximum, (jnp.max(jnp.abs(weight), axis=0) for weight in weights))
    scales = jnp.clip(largest, 1e-5) ** alpha / jnp.clip(columns, 1e-5) ** (1 - alpha)
    # A channel that is always 0 stays as it is.
    return jnp.where(largest > 0, scales, 1)
