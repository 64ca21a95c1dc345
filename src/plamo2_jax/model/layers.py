"""Parameters with named axes, RMS norms, the gated MLP and rotary embedding."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes

# Residual branches are scaled down by their norms' offsets: 1/5 after the mixer, 1/5^1.5 after the MLP (public PLaMo 2 code).
MIXER_SCALE = 1 / 5
MLP_SCALE = 1 / 5**1.5


def parameter(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], names: axes.Axes
) -> Array:
    """A float32 parameter that carries the names of its axes."""
    return module.param(name, nn.with_logical_partitioning(init, names), shape, jnp.float32)


def rms_normalize(x: Float[Array, "*b d"], epsilon: float) -> Float[Array, "*b d"]:
    """x / sqrt(mean(x²) + epsilon) over the last axis: statistics in float32, result in the dtype of x."""
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + epsilon)).astype(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm over the residual stream, times (offset + scale); `scale` starts at 0."""

    offset: float
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Same shape and dtype as x."""
        scale = parameter(self, "scale", nn.initializers.zeros, x.shape[-1:], (axes.EMBED,))
        return rms_normalize(x, self.epsilon) * (self.offset + scale).astype(x.dtype)


class GatedMLP(nn.Module):
    """down(silu(gate) · up)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Same shape and dtype as x."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        e, f = c.hidden_size, c.intermediate_size
        gate = parameter(self, "gate", init, (e, f), (axes.EMBED, axes.MLP))
        up = parameter(self, "up", init, (e, f), (axes.EMBED, axes.MLP))
        down = parameter(self, "down", init, (f, e), (axes.MLP, axes.EMBED))

        def widen(weight):
            return jnp.einsum("btd,df->btf", x, weight.astype(x.dtype))

        return jnp.einsum("btf,fd->btd", nn.silu(widen(gate)) * widen(up), down.astype(x.dtype))


def apply_rope(x: Float[Array, "b t h p"], positions: Int[Array, "b t"], theta: float) -> Float[Array, "b t h p"]:
    """Rotary embedding on all of p, halves paired (i, i + p/2), frequencies theta^(-2i/p) (arXiv:2104.09864); angles in float32."""
    p = x.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angles = positions[..., None, None].astype(dtype) * theta ** (-jnp.arange(0, p, 2, dtype=dtype) / p)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
