"""RMS norm, gated MLP, rotary embedding, and the recording of activation statistics."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.model.linear import project, project_together
from plamo2_jax.model.parameters import parameter
from plamo2_kernels.quant import Implementation as ProductImplementation
from plamo2_kernels.rms_norm import rms_norm

# The norms at the end of residual branches scale them down: by 1/5 after the mixer, by 1/5^1.5 after the MLP (public PLaMo 2 code).
MIXER_SCALE = 1 / 5
MLP_SCALE = 1 / 5**1.5

OBSERVED = "observed"
"""Flax collection of the recorded statistics. `model.apply(..., mutable=[OBSERVED])` returns it; otherwise nothing is recorded."""


def observe(module: nn.Module, x: Float[Array, "b t *c"], names: axes.Axes, segment_ids: Int[Array, "b t"]) -> None:
    """Record the magnitude of each channel of `x`, averaged over the tokens of a row: [b, c] float32, under the name of their axis.

    Args:
        module: Module whose collection is written.
        x: Activations.
        names: Names of the axes after b and t: one axis, or one axis and HEAD_DIM. The norm over HEAD_DIM is the magnitude of a head.
        segment_ids: Segments of the tokens. Padding (0) is not counted.
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
    """Record the block influence of a period (ShortGPT, arXiv:2403.03853, equation 1) under the name of the axis of layers.

    It is 1 - cos(before, after), averaged over the tokens of a row: [b] float32.
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


class RMSNorm(nn.Module):
    """RMS norm over the residual stream, multiplied by (offset + scale). The parameter `scale` starts at 0.

    Attributes:
        offset, ends_residual: See `axes.Declaration`.
        contracts: Whether the norm's output is summed over without a weight (see `axes.Declaration.norm_offset`).
        product_implementation: See `Plamo2`.
    """

    offset: float
    epsilon: float
    ends_residual: bool = False
    contracts: bool = False
    product_implementation: ProductImplementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the normalized x, in its dtype."""
        contracts = (axes.EMBED,) if self.contracts else ()
        declared = {"contracts": contracts, "norm_offset": self.offset, "ends_residual": self.ends_residual}
        scale = parameter(self, "scale", nn.initializers.zeros, {axes.EMBED: x.shape[-1]}, **declared)
        return rms_norm(x, scale, self.epsilon, offset=self.offset, implementation=self.product_implementation)


class GatedMLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) · up(x))."""

    config: ModelConfig
    product_implementation: ProductImplementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], segment_ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Return the output in the dtype of x."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        e, f = c.hidden_size, c.intermediate_size

        sizes = {axes.EMBED: e, axes.MLP: f}
        gate, up = project_together(self, "btd,df->btf", x, init, {"gate": sizes, "up": sizes})
        y = nn.silu(gate) * up
        observe(self, y, (axes.MLP,), segment_ids)
        return project(self, "down", "btf,fd->btd", y, init, {axes.MLP: f, axes.EMBED: e})


def apply_rope(x: Float[Array, "b t h p"], positions: Int[Array, "b t"], theta: float) -> Float[Array, "b t h p"]:
    """Rotate all p channels by RoPE (arXiv:2104.09864): channels i and i + p/2 form a pair with the frequency theta^(-2i/p).

    Angles are computed in float32; the result has the dtype of x.
    """
    p = x.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angles = positions[..., None, None].astype(dtype) * theta ** (-jnp.arange(0, p, 2, dtype=dtype) / p)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
