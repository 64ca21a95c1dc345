"""Mamba mixer: a gated selective scan. As in Mamba-1, B, C and dt are projections of the convolution's output."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes, parallel
from plamo2_jax.model.cache import Context, LayerCache, MambaCache
from plamo2_jax.model.layers import observe
from plamo2_jax.model.linear import multiply, project
from plamo2_jax.model.mamba_step import step_natively, steps_natively
from plamo2_jax.model.parameters import parameter
from plamo2_kernels.quant import Implementation as ProductImplementation
from plamo2_kernels.rms_norm import rms_norm
from plamo2_kernels.ssd import Implementation


def _a_log_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Return log(h + 1) for head h, which gives the decay rates 1, 2, 3, ..."""
    del key
    return jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))


def _dt_bias_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Return the inverse softplus of step sizes that are drawn log-uniformly from [1e-3, 1e-1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, jnp.log(1e-3), jnp.log(1e-1)))
    return dt + jnp.log(-jnp.expm1(-dt))


def _conv_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Return values drawn uniformly from ±1/sqrt(taps)."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Mamba(nn.Module):
    """Selective scan with a gate.

    z, x = in_proj(u)
    x = silu(conv(x))
    B, C, dt = projections of x
    output = out_proj(ssd(x, dt, A, B, C, D) · silu(z))
    """

    config: ModelConfig
    implementation: Implementation = "auto"
    mesh: jax.sharding.Mesh | None = None
    product_implementation: ProductImplementation = "xla"

    @nn.compact
    def __call__(
        self, u: Float[Array, "b t d"], context: Context, cache: MambaCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache]:
        """Return the output in the dtype of u, and the state after these tokens (None without a cache)."""
        c = self.config
        e, h, p, n, r = c.hidden_size, c.mamba_num_heads, c.hidden_size_per_head, c.mamba_d_state, c.dt_rank
        heads = {axes.MAMBA_HEADS: h}
        inner = {**heads, axes.HEAD_DIM: p}
        normal, ones = nn.initializers.normal(c.initializer_range), nn.initializers.ones

        def close(y):
            return project(self, "out_proj", "bthp,hpd->btd", y, normal, {**inner, axes.EMBED: e})

        # The axis of z and x comes first. As one of the last two axes, its size of 2 would fill only a quarter of each TPU tile.
        z, x = project(self, "in_proj", "btd,dhp->bthp", u, normal, {None: 2, axes.EMBED: e, **inner})
        if steps_natively(self, x, context, cache):
            y, after = step_natively(self, x, z, context, cache)
            return close(y), after
        conv_state = ssm_state = continues = None
        if cache is not None:
            continues, ssm_state = context.continues, cache.ssm
            conv_state = jnp.where(continues[:, None, None, None], cache.conv, 0)
        conv = parameter(self, "conv", _conv_init, {**inner, axes.CONV: c.mamba_d_conv})
        convolve = functools.partial(parallel.convolve, self.mesh, x, conv, state=conv_state)
        x, conv_state = convolve(segment_ids=context.segment_ids)
        # Three products read x. Without this barrier, XLA may compute the convolution again for each of them.
        x = jax.lax.optimization_barrier(x)

        def narrow(name, axis, size):
            return project(self, name, "bthp,hpn->btn", x, normal, {**inner, axis: size})

        def norm(x, name, axis, contracts=()):
            scale = parameter(self, name, ones, {axis: x.shape[-1]}, contracts=contracts, norm_offset=0.0)
            return rms_norm(x, scale, c.rms_norm_eps, implementation=self.product_implementation)

        B, C = narrow("b_proj", axes.STATE, n), narrow("c_proj", axes.STATE, n)
        low_rank = narrow("dt_down", axes.DT_RANK, r)
        # Flax derives a parameter's random values from the order of declaration, so another order would change seeded models.
        dt_up = parameter(self, "dt_up", normal, {axes.DT_RANK: r, **heads}, contracts=(axes.DT_RANK,))
        B = norm(B, "b_norm", axes.STATE)
        # The scan sums over the axis state without a weight, so C's scale is declared as the reader (see `Declaration.norm_offset`).
        C = norm(C, "c_norm", axes.STATE, contracts=(axes.STATE,))
        low_rank = norm(low_rank, "dt_norm", axes.DT_RANK)
        dt_bias = parameter(self, "dt_bias", _dt_bias_init, heads)
        a_log = parameter(self, "a_log", _a_log_init, heads)
        skip = parameter(self, "skip", ones, heads)
        observe(self, B * C, (axes.STATE,), context.segment_ids)
        observe(self, low_rank, (axes.DT_RANK,), context.segment_ids)
        dt = multiply("btr,rh->bth", low_rank, dt_up, dt_bias.dtype, implementation=self.product_implementation)
        arrays = x, nn.softplus(dt + dt_bias), -jnp.exp(a_log), B[:, :, None], C[:, :, None], skip
        settings = {"state": ssm_state, "continues": continues, "implementation": self.implementation}
        scan = functools.partial(parallel.scan, self.mesh, *arrays, **settings)
        y, ssm_state = scan(segment_ids=context.segment_ids)
        y = y * nn.silu(z)
        observe(self, y, tuple(inner), context.segment_ids)
        out = close(y)

        def commit(context: Context) -> MambaCache:
            conv_state, ssm_state = (compute(segment_ids=context.segment_ids)[1] for compute in (convolve, scan))
            return MambaCache(conv_state.astype(cache.conv.dtype), ssm_state)

        if context.deferred:
            return out, commit
        return out, None if cache is None else MambaCache(conv_state.astype(cache.conv.dtype), ssm_state)
