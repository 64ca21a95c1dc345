"""The state-space mixer: gated selective scan with a Mamba-1 style projection of B, C and dt after the convolution."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes, parallel
from plamo2_jax.model.cache import MambaCache
from plamo2_jax.model.context import Context
from plamo2_jax.model.layers import observe, parameter, rms_normalize
from plamo2_kernels.conv1d import causal_conv1d
from plamo2_kernels.ssd import Implementation, ssd


def _a_log_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """ln(h + 1) for head h: decay rates 1, 2, 3, ..."""
    del key
    return jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))


def _dt_bias_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Inverse softplus of step sizes drawn log-uniformly from [1e-3, 1e-1], at least 1e-4."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, jnp.log(1e-3), jnp.log(1e-1)))
    dt = jnp.maximum(dt, 1e-4)
    return dt + jnp.log(-jnp.expm1(-dt))


def _conv_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Uniform in ±1/sqrt(taps)."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Mamba(nn.Module):
    """u → z, x; x → convolution, silu → B, C, dt → scan; out(scan · silu(z))."""

    config: ModelConfig
    implementation: Implementation = "auto"
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(
        self, u: Float[Array, "b t d"], context: Context, cache: MambaCache | None
    ) -> tuple[Float[Array, "b t d"], MambaCache | None]:
        """Mix tokens; returns the output in the dtype of u and the new state (None without a cache)."""
        c = self.config
        e, h, p, n, r = c.hidden_size, c.mamba_num_heads, c.hidden_size_per_head, c.mamba_d_state, c.dt_rank
        inner = (axes.MAMBA_HEADS, axes.HEAD_DIM)
        normal, ones = nn.initializers.normal(c.initializer_range), nn.initializers.ones
        # Of z and of x; the pair leads, since as one of the last two axes it would fill a quarter of a TPU's tiles.
        in_proj = parameter(self, "in_proj", normal, (2, e, h, p), (None, axes.EMBED, *inner), reads=(axes.EMBED,))
        conv = parameter(self, "conv", _conv_init, (h, p, c.mamba_d_conv), (*inner, axes.CONV))
        b_proj = parameter(self, "b_proj", normal, (h, p, n), (*inner, axes.STATE), reads=inner)
        c_proj = parameter(self, "c_proj", normal, (h, p, n), (*inner, axes.STATE), reads=inner)
        dt_down = parameter(self, "dt_down", normal, (h, p, r), (*inner, axes.DT_RANK), reads=inner)
        dt_up = parameter(self, "dt_up", normal, (r, h), (axes.DT_RANK, axes.MAMBA_HEADS), reads=(axes.DT_RANK,))
        b_norm = parameter(self, "b_norm", ones, (n,), (axes.STATE,), offset=0.0)
        # The scan sums over the product of B and C; C's scale stands for the reader of the state.
        c_norm = parameter(self, "c_norm", ones, (n,), (axes.STATE,), reads=(axes.STATE,), offset=0.0)
        dt_norm = parameter(self, "dt_norm", ones, (r,), (axes.DT_RANK,), offset=0.0)
        dt_bias = parameter(self, "dt_bias", _dt_bias_init, (h,), (axes.MAMBA_HEADS,))
        a_log = parameter(self, "a_log", _a_log_init, (h,), (axes.MAMBA_HEADS,))
        skip = parameter(self, "skip", ones, (h,), (axes.MAMBA_HEADS,))
        out_proj = parameter(self, "out_proj", normal, (h, p, e), (*inner, axes.EMBED), reads=inner)

        def norm(x, scale):
            return rms_normalize(x, c.rms_norm_eps) * scale.astype(x.dtype)

        conv_state = ssm_state = continues = None
        if cache is not None:
            continues, ssm_state = context.continues, cache.ssm
            conv_state = jnp.where(continues[:, None, None, None], cache.conv, 0)

        dtype = u.dtype
        z, x = (jnp.einsum("btd,dhp->bthp", u, weight) for weight in in_proj.astype(dtype))
        # Pieces with a cache, and the one token that parameters are made with, are not cut.
        mesh = None if cache is not None or self.is_initializing() else self.mesh
        if mesh is None:
            x, conv_state = causal_conv1d(
                x, conv, segment_ids=context.segment_ids, initial_state=conv_state, activation="silu"
            )
        else:
            x = parallel.convolve(mesh, x, conv, context.segment_ids)
        # Three products read x: without the barrier XLA may run the convolution anew for each.
        x = jax.lax.optimization_barrier(x)
        B, C, low_rank = (
            norm(jnp.einsum("bthp,hpn->btn", x, weight.astype(dtype)), scale)
            for weight, scale in ((b_proj, b_norm), (c_proj, c_norm), (dt_down, dt_norm))
        )
        observe(self, B * C, (axes.STATE,), context.segment_ids)
        observe(self, low_rank, (axes.DT_RANK,), context.segment_ids)
        dt = jnp.einsum("btr,rh->bth", low_rank, dt_up.astype(dtype), preferred_element_type=dt_bias.dtype)
        arrays = x, nn.softplus(dt + dt_bias), -jnp.exp(a_log), B[:, :, None], C[:, :, None], skip
        if mesh is None:
            y, ssm_state = ssd(
                *arrays,
                segment_ids=context.segment_ids,
                initial_state=ssm_state,
                continues=continues,
                implementation=self.implementation,
            )
        else:
            y = parallel.scan(mesh, *arrays, context.segment_ids, self.implementation)
        y = y * nn.silu(z)
        observe(self, y, inner, context.segment_ids)
        out = jnp.einsum("bthp,hpd->btd", y, out_proj.astype(dtype))
        return out, None if cache is None else MambaCache(conv_state.astype(cache.conv.dtype), ssm_state)
