"""Attention mixer: grouped-query attention with normalized queries and keys and rotary positions, over a window or the whole document."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.model import axes, parallel
from plamo2_jax.model.cache import AttentionCache, Context, LayerCache
from plamo2_jax.model.layers import apply_rope, observe
from plamo2_jax.model.linear import project, project_together
from plamo2_jax.model.parameters import parameter
from plamo2_kernels.attention import Implementation
from plamo2_kernels.quant import Implementation as ProductImplementation
from plamo2_kernels.rms_norm import rms_norm

# Epsilon of the query and key norms. The public PLaMo 2 code uses this constant, not the epsilon of the config.
_QK_EPSILON = 1e-6


class Attention(nn.Module):
    """Causal attention within segments: over `attention_window_size` tokens for the kind WINDOW, over all tokens for the kind FULL."""

    config: ModelConfig
    kind: LayerKind
    implementation: Implementation = "auto"
    mesh: jax.sharding.Mesh | None = None
    product_implementation: ProductImplementation = "xla"

    @nn.compact
    def __call__(
        self, u: Float[Array, "b t d"], context: Context, cache: AttentionCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache]:
        """Return the output in the dtype of u, and the cache with the new keys and values (None without a cache)."""
        c = self.config
        e, h, g, p = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.hidden_size_per_head
        heads, kv_heads = ({name: size, axes.HEAD_DIM: p} for name, size in ((axes.HEADS, h), (axes.KV_HEADS, g)))
        normal, ones = nn.initializers.normal(c.initializer_range), nn.initializers.ones
        full = self.kind is LayerKind.FULL
        window = None if full else c.attention_window_size
        theta = float(c.rope_theta if full else c.local_theta)

        def rotate(x, name, sizes):
            scale = parameter(self, name, ones, sizes)
            x = rms_norm(x, scale, _QK_EPSILON, implementation=self.product_implementation)
            return apply_rope(x, context.positions, theta)

        sizes = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        sizes = {name: {axes.EMBED: e, **each} for name, each in sizes.items()}
        q, k, v = project_together(self, "btd,dhp->bthp", u, normal, sizes)
        q, k = rotate(q, "q_scale", heads), rotate(k, "k_scale", kv_heads)
        settings = {"window": window, "implementation": self.implementation, "one_token": self.product_implementation}
        y, after = parallel.attend(self.mesh, cache, q, k, v, context, **settings)
        if context.deferred:
            after = functools.partial(parallel.write, self.mesh, cache, q.shape[2], k, v)
        observe(self, y, tuple(heads), context.segment_ids)
        return project(self, "o_proj", "bthp,hpd->btd", y, normal, {**heads, axes.EMBED: e}), after
