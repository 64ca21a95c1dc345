"""What a model remembers of a row between calls: one explicit pytree.

A `Cache` mirrors the layers. Stacked, it has for every run a tuple with one entry for each position of the period, whose arrays are
stacked over the run's periods (leading axis l), as `nn.scan` wants them. Otherwise it has for every run a tuple of such tuples, one for
each period, without that axis.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from plamo2_jax.config import LayerGroup, LayerKind, ModelConfig
from plamo2_kernels.attention import Implementation, Keys, cached_attention, masked_attention


class MambaCache(struct.PyTreeNode):
    """State of a state-space layer."""

    conv: Float[Array, "b k-1 h p"]
    """The last inputs of the convolution, before it, in the activation dtype."""
    ssm: Float[Array, "b h p n"]
    """The scan's state, float32."""


class AttentionCache(struct.PyTreeNode):
    """Keys and values of an attention layer: a ring of `s` slots, slot = count of tokens mod s."""

    k: Float[Array, "b s g p"]
    """Keys after norm, scale and rotation."""
    v: Float[Array, "b s g p"]
    positions: Int[Array, "b s"]
    segment_ids: Int[Array, "b s"]
    """Segment of the token in each slot; -1 in an empty slot."""

    def write(
        self,
        k: Float[Array, "b t g p"],
        v: Float[Array, "b t g p"],
        positions: Int[Array, "b t"],
        segment_ids: Int[Array, "b t"],
        count: Int[Array, " b"],
    ) -> AttentionCache:
        """Append the tokens that are not padding, the oldest making room; `count`: tokens written before, a row."""
        slots = self.k.shape[1]
        real = segment_ids != 0
        rank = jnp.cumsum(real, axis=1) - 1
        total = rank[:, -1:] + 1
        # Of more tokens than slots only the last are written: a scatter with equal targets has no order. Others aim out of bounds.
        kept = real & (rank >= total - slots)
        slot = jnp.where(kept, (count[:, None] + rank) % slots, slots)

        def put(old, new):
            return jax.vmap(lambda o, s, n: o.at[s].set(n.astype(o.dtype), mode="drop"))(old, slot, new)

        return AttentionCache(
            put(self.k, k), put(self.v, v), put(self.positions, positions), put(self.segment_ids, segment_ids)
        )

    def attend(
        self,
        q: Float[Array, "b t h p"],
        k: Float[Array, "b t g p"],
        v: Float[Array, "b t g p"],
        positions: Int[Array, "b t"],
        segment_ids: Int[Array, "b t"],
        count: Int[Array, " b"],
        *,
        window: int | None,
        implementation: Implementation,
        read: Callable[[Array], Array] = lambda heads: heads,
    ) -> tuple[Float[Array, "b t h p"], AttentionCache]:
        """Attend to the tokens before and to those of a piece, and append the latter.

        Args:
            read: picks the key/value heads that the queries read; by default all.
        """
        new = self.write(k, v, positions, segment_ids, count)
        if q.shape[1] == 1:
            # The ring holds the window and the token itself, so one token needs no copy of it.
            keys = read(new.k).astype(q.dtype), read(new.v).astype(q.dtype)
            y = masked_attention(q, *keys, segment_ids, new.segment_ids, positions, new.positions, window=window)
        else:
            piece = Keys(read(k), read(v), positions, segment_ids)
            ring = Keys(read(self.k), read(self.v), self.positions, self.segment_ids)
            y = cached_attention(q, piece, ring, count, window=window, implementation=implementation)
        return y, new


class Cache(struct.PyTreeNode):
    """State of a whole model for a batch of rows."""

    runs: tuple[tuple, ...]
    """Of `MambaCache` and `AttentionCache`; see the module."""
    count: Int[Array, " b"]
    """Tokens seen, padding not counted: the position of the next one."""
    segment: Int[Array, " b"]
    """Segment of the last token; 0 before the first."""


def init_cache(
    config: ModelConfig, batch_size: int, max_length: int, dtype: jnp.dtype, *, stacked: bool = True
) -> Cache:
    """An empty cache.

    Args:
        config: the model's shape.
        batch_size: rows.
        max_length: tokens of the longest row to come. A layer of full attention forgets its oldest tokens beyond it, so callers that
            may pass it must refuse to.
        dtype: of keys, values and convolution inputs; the scan's state is float32 (float64 if dtype is).
        stacked: whether the arrays of a run's periods are stacked.
    """
    b, p, g = batch_size, config.hidden_size_per_head, config.num_key_value_heads

    def layer(kind: LayerKind, *lead: int):
        if kind is LayerKind.MAMBA:
            h, n, k = config.mamba_num_heads, config.mamba_d_state, config.mamba_d_conv
            state_dtype = jnp.promote_types(dtype, jnp.float32)
            return MambaCache(jnp.zeros((*lead, b, k - 1, h, p), dtype), jnp.zeros((*lead, b, h, p, n), state_dtype))
        s = min(max_length, config.attention_window_size + 1) if kind is LayerKind.WINDOW else max_length
        # Two buffers, not one twice: a cache may be donated.
        k, v = (jnp.zeros((*lead, b, s, g, p), dtype) for _ in range(2))
        return AttentionCache(k, v, jnp.zeros((*lead, b, s), jnp.int32), jnp.full((*lead, b, s), -1, jnp.int32))

    def periods(run: LayerGroup):
        if stacked:
            return tuple(layer(kind, run.count) for kind in run.kinds)
        return tuple(tuple(map(layer, run.kinds)) for _ in range(run.count))

    return Cache(
        tuple(map(periods, config.layer_groups)),
        jnp.zeros((b,), jnp.int32),
        jnp.zeros((b,), jnp.int32),
    )
