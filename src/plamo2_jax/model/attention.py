"""The attention mixer: grouped queries, normed queries and keys, rotary positions, a window or the whole document."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.model import axes, parallel
from plamo2_jax.model.cache import AttentionCache
from plamo2_jax.model.context import Context
from plamo2_jax.model.layers import apply_rope, observe, rms_normalize
from plamo2_jax.model.linear import project
from plamo2_jax.model.parameters import parameter
from plamo2_kernels.attention import Implementation, attention

# Of the norms of queries and keys; the public code does not take it from the config.
_QK_EPSILON = 1e-6


class Attention(nn.Module):
    """Causal attention within segments; `kind` says whether a window limits it, `implementation` how whole rows are computed."""

    config: ModelConfig
    kind: LayerKind
    implementation: Implementation = "auto"
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(
        self, u: Float[Array, "b t d"], context: Context, cache: AttentionCache | None
    ) -> tuple[Float[Array, "b t d"], AttentionCache | None]:
        """Mix tokens; returns the output in the dtype of u and the new keys and values (None without a cache)."""
        c = self.config
        e, h, g, p = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.hidden_size_per_head
        heads, kv_heads = ({name: size, axes.HEAD_DIM: p} for name, size in ((axes.HEADS, h), (axes.KV_HEADS, g)))
        normal, ones = nn.initializers.normal(c.initializer_range), nn.initializers.ones
        full = self.kind is LayerKind.FULL
        window = None if full else c.attention_window_size
        theta = float(c.rope_theta if full else c.local_theta)

        def widen(name, sizes):
            return project(self, name, "btd,dhp->bthp", u, normal, {axes.EMBED: e, **sizes})

        def rotate(x, name, sizes):
            x = rms_normalize(x, _QK_EPSILON) * parameter(self, name, ones, sizes).astype(x.dtype)
            return apply_rope(x, context.positions, theta)

        q, k, v = widen("q_proj", heads), widen("k_proj", kv_heads), widen("v_proj", kv_heads)
        q, k = rotate(q, "q_scale", heads), rotate(k, "k_scale", kv_heads)
        segments, positions = context.segment_ids, context.positions
        mesh = None if self.is_initializing() else self.mesh
        settings = {"window": window, "implementation": self.implementation}
        if cache is not None:
            attend = cache.attend if mesh is None else functools.partial(parallel.attend_cached, mesh, cache)
            y, cache = attend(q, k, v, positions, segments, context.count, **settings)
        elif mesh is not None:
            y = parallel.attend(mesh, q, k, v, segments, **settings)
        else:
            y = attention(q, k, v, segment_ids=segments, **settings)
        observe(self, y, tuple(heads), segments)
        return project(self, "o_proj", "bthp,hpd->btd", y, normal, {**heads, axes.EMBED: e}), cache
