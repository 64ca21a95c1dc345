"""Parameters with named axes, RMS norms, the gated MLP and rotary embedding."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.model.linear import project
from plamo2_jax.model.parameters import parameter

# Residual branches are scaled down by their norms' offsets: 1/5 after the mixer, 1/5^1.5 after the MLP (public PLaMo 2 code).
MIXER_SCALE = 1 / 5
MLP_SCALE = 1 / 5**1.5


OBSERVED = "observed"
"""The collection that `observe` writes to: `model.apply(..., mutable=[OBSERVED])`."""


def observe(module: nn.Module, x: Float[Array, "b t *c"], names: axes.Axes, segment_ids: Int[Array, "b t"]) -> None:
    """Record how large the channels of `x` are, under the name of their axis; does nothing unless OBSERVED is mutable.

    Args:
        module: whose collection is written.
        x: activations.
        names: of the axes after b and t: one axis, or one and HEAD_DIM, over which the norm is taken.
        segment_ids: tokens of segment 0 are left out.

    What is recorded is the mean over a row's tokens of each channel's magnitude, [b, c] float32.
    """
    if module.is_initializing() or not module.is_mutable_collection(OBSERVED):
        return
    x = jnp.abs(x.astype(jnp.float32))
    if axes.HEAD_DIM in names:
        x = jnp.linalg.norm(x, axis=2 + names.index(axes.HEAD_DIM))
    (name,) = (name for name in names if name != axes.HEAD_DIM)
    module.sow(OBSERVED, name, _mean_over_tokens(x, segment_ids))


def record_block_influence(
    module: nn.Module, before: Float[Array, "b t d"], after: Float[Array, "b t d"], segment_ids: Int[Array, "b t"]
) -> None:
    """Record the block influence of layers (ShortGPT, arXiv:2403.03853, equation 1), under the name of the layers' axis.

    It is the mean over a row's tokens of 1 - cos(before, after), [b].
    """
    if module.is_initializing() or not module.is_mutable_collection(OBSERVED):
        return
    a, b = before.astype(jnp.float32), after.astype(jnp.float32)
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    cosine = jnp.sum(a * b, axis=-1) / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)
    module.sow(OBSERVED, axes.LAYERS, _mean_over_tokens(1 - cosine, segment_ids))


def _mean_over_tokens(x: Float[Array, "b t *c"], segment_ids: Int[Array, "b t"]) -> Float[Array, " b *c"]:
    seen = (segment_ids != 0).reshape(*segment_ids.shape, *(1,) * (x.ndim - 2))
    return jnp.sum(jnp.where(seen, x, 0), axis=1) / jnp.maximum(jnp.sum(seen, axis=1), 1)


def rms_normalize(x: Float[Array, "*b d"], epsilon: float) -> Float[Array, "*b d"]:
    """x / sqrt(mean(x²) + epsilon) over the last axis: statistics in float32, result in the dtype of x."""
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + epsilon)).astype(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm over the residual stream, times (offset + scale); `scale` starts at 0.

    Attributes:
        offset: the factor while `scale` is 0.
        epsilon: of the norm.
        ends_residual: whether a residual branch ends here.
        contracts: whether this norm's scale stands for the reader of the stream (see `axes.Declaration.norm_offset`).
    """

    offset: float
    epsilon: float
    ends_residual: bool = False
    contracts: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Same shape and dtype as x."""
        scale = parameter(
            self,
            "scale",
            nn.initializers.zeros,
            {axes.EMBED: x.shape[-1]},
            contracts=(axes.EMBED,) if self.contracts else (),
            norm_offset=self.offset,
            ends_residual=self.ends_residual,
        )
        return rms_normalize(x, self.epsilon) * (self.offset + scale).astype(x.dtype)


class GatedMLP(nn.Module):
    """down(silu(gate) · up)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], segment_ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Same shape and dtype as x."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        e, f = c.hidden_size, c.intermediate_size

        def widen(name):
            return project(self, name, "btd,df->btf", x, init, {axes.EMBED: e, axes.MLP: f})

        y = nn.silu(widen("gate")) * widen("up")
        observe(self, y, (axes.MLP,), segment_ids)
        return project(self, "down", "btf,fd->btd", y, init, {axes.MLP: f, axes.EMBED: e})


def apply_rope(x: Float[Array, "b t h p"], positions: Int[Array, "b t"], theta: float) -> Float[Array, "b t h p"]:
    """Rotary embedding on all of p, halves paired (i, i + p/2), frequencies theta^(-2i/p) (arXiv:2104.09864); angles in float32."""
    p = x.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angles = positions[..., None, None].astype(dtype) * theta ** (-jnp.arange(0, p, 2, dtype=dtype) / p)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
