"""The state of a model between calls, and the segments and positions of the tokens of one call.

A `Cache` has the structure of the layers. If stacked, it has one tuple for every layer group, with one entry for each position of the
period; the arrays of an entry are stacked over the periods of the group (leading axis l), as `nn.scan` requires. Otherwise, it has one
tuple for every layer group, with one such tuple for each period, and the arrays have no axis l.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from plamo2_jax.config import LayerGroup, LayerKind, ModelConfig
from plamo2_kernels.attention import (
    Implementation,
    Keys,
    attend_one_token,
    cached_attention,
    dequantize_heads,
    quantize_heads,
)
from plamo2_kernels.segments import carried_segments, first_segment

KeyDtype = Literal["int8"] | None
"""dtypes of cached keys and values; None: the dtype of the activations."""


class Context(struct.PyTreeNode):
    """Segments and positions of the tokens of one call. All layers get the same context."""

    segment_ids: Int[Array, "b t"]
    positions: Int[Array, "b t"]
    count: Int[Array, " b"]
    """Number of tokens in each row before this call."""
    continues: Bool[Array, " b"]
    """Whether the first segment continues the last segment of the call before. If not, its states start from zero."""
    deferred: bool = struct.field(pytree_node=False, default=False)
    """Whether layers return functions instead of new caches. Such a function takes a context and returns the cache after its tokens."""


class MambaCache(struct.PyTreeNode):
    """State of a Mamba layer."""

    conv: Float[Array, "b k-1 h p"]
    """The last inputs of the convolution, in the activation dtype."""
    ssm: Float[Array, "b h p n"]
    """State of the scan, float32."""


class AttentionCache(struct.PyTreeNode):
    """Keys and values of an attention layer, in a ring buffer of s slots. Token i of a row is in slot i mod s."""

    k: Float[Array, "b g s p"] | Int[Array, "b g s p"]
    """Keys after norm, scale and rotation. Slots are next to the last axis, so the keys of a head are contiguous."""
    v: Float[Array, "b g s p"] | Int[Array, "b g s p"]
    positions: Int[Array, "b s"]
    segment_ids: Int[Array, "b s"]
    """Segment of the token in each slot; -1 in an empty slot."""
    k_scales: Float[Array, "b g s"] | None = None
    """If k and v are int8: the scale of each head of each token. Otherwise None."""
    v_scales: Float[Array, "b g s"] | None = None

    def write(self, k: Float[Array, "b t g p"], v: Float[Array, "b t g p"], context: Context) -> AttentionCache:
        """Write the tokens that are not padding over the oldest tokens."""
        slots = self.k.shape[2]
        real = context.segment_ids != 0
        rank = jnp.cumsum(real, axis=1) - 1
        total = rank[:, -1:] + 1
        # If there are more tokens than slots, only the last are written, because a scatter to equal targets has no defined order. The
        # other tokens get a slot out of bounds, and the scatter drops them.
        kept = real & (rank >= total - slots)
        slot = jnp.where(kept, (context.count[:, None] + rank) % slots, slots)

        def put(old, slot, new):
            return jax.vmap(lambda o, s, n: o.at[s].set(n, mode="drop"))(old, slot, new)

        def put_heads(old, new):
            if old is None:
                return None
            new = new.swapaxes(1, 2).astype(old.dtype)
            flat = old.reshape(-1, *old.shape[2:])
            slots = jnp.repeat(slot, old.shape[1], axis=0)
            return put(flat, slots, new.reshape(-1, *new.shape[2:])).reshape(old.shape)

        k_scales = v_scales = None
        if self.k_scales is not None:
            (k, k_scales), (v, v_scales) = quantize_heads(k), quantize_heads(v)
        return AttentionCache(
            put_heads(self.k, k),
            put_heads(self.v, v),
            put(self.positions, slot, context.positions),
            put(self.segment_ids, slot, context.segment_ids),
            put_heads(self.k_scales, k_scales),
            put_heads(self.v_scales, v_scales),
        )

    def axes(self) -> AttentionCache:
        """Return the axis of the slots in each array."""
        scales = None if self.k_scales is None else 2
        return AttentionCache(2, 2, 1, 1, scales, scales)

    def attend(
        self,
        q: Float[Array, "b t h p"],
        k: Float[Array, "b t g p"],
        v: Float[Array, "b t g p"],
        context: Context,
        *,
        window: int | None,
        implementation: Implementation,
        one_token: str = "xla",
    ) -> tuple[Float[Array, "b t h p"], AttentionCache]:
        """Attend to the tokens in the cache and to the new tokens. Return the output, and the cache with the new tokens.

        If the cache is int8, the new keys and values are rounded first. So the result does not depend on how a row is cut into calls.

        Args:
            q, k, v: Queries, keys and values of the new tokens.
            context: Their segments and positions.
            window: Number of past tokens that a query sees besides itself; None: all.
            implementation: Implementation for several tokens.
            one_token: Implementation of `attend_one_token`.
        """
        new = self.write(k, v, context)
        positions, segment_ids = context.positions, context.segment_ids
        if q.shape[1] == 1:
            # The ring buffer holds the whole window and the token itself, so a single token reads it in place.
            ring = Keys(new.k, new.v, new.positions, new.segment_ids)
            scales = None if new.k_scales is None else (new.k_scales, new.v_scales)
            of_token = positions[:, 0], segment_ids[:, 0]
            y = attend_one_token(q[:, 0], ring, scales, *of_token, window=window, implementation=one_token)[:, None]
        else:
            held_k, held_v = self.k, self.v
            if self.k_scales is not None:
                k, v = (dequantize_heads(*quantize_heads(each), each.dtype) for each in (k, v))
                held_k = dequantize_heads(self.k, self.k_scales, q.dtype)
                held_v = dequantize_heads(self.v, self.v_scales, q.dtype)
            piece = Keys(k.swapaxes(1, 2), v.swapaxes(1, 2), positions, segment_ids)
            ring = Keys(held_k, held_v, self.positions, self.segment_ids)
            y = cached_attention(q, piece, ring, context.count, window=window, implementation=implementation)
        return y, new


LayerCache = MambaCache | AttentionCache | Callable[[Context], MambaCache | AttentionCache] | None
"""What a layer returns as its new cache: a function if the context is deferred, None without a cache."""


class Cache(struct.PyTreeNode):
    """State of a whole model for a batch of rows."""

    runs: tuple[tuple, ...]
    """`MambaCache` and `AttentionCache` of the layers, in the structure that the module docstring describes."""
    count: Int[Array, " b"]
    """Number of tokens so far, without padding: the position of the next token."""
    segment: Int[Array, " b"]
    """Segment of the last token; 0 before the first token."""


def make_context(
    tokens: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"] | None,
    positions: Int[Array, "b t"] | None,
    cache: Cache | None,
) -> Context:
    """Build the context of a call. By default, a row is one document, and positions continue at the cache's count."""
    b = tokens.shape[0]
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    count = jnp.zeros((b,), jnp.int32) if cache is None else cache.count
    if positions is None:
        positions = count[:, None] + jnp.maximum(jnp.cumsum(segment_ids != 0, axis=1) - 1, 0)
    continues = jnp.ones((b,), bool) if cache is None else first_segment(segment_ids) == cache.segment
    return Context(segment_ids, positions, count, continues | (first_segment(segment_ids) == 0))


def advance(cache: Cache, runs: tuple, context: Context) -> Cache:
    """Return the cache after a call, with the new states of the layers."""
    seen = jnp.any(context.segment_ids != 0, axis=1)
    last = carried_segments(context.segment_ids)[:, -1]
    return Cache(
        runs,
        cache.count + jnp.sum(context.segment_ids != 0, axis=1, dtype=jnp.int32),
        jnp.where(seen, last, cache.segment),
    )


def init_cache(
    config: ModelConfig,
    batch_size: int,
    max_length: int,
    dtype: jnp.dtype,
    *,
    stacked: bool = True,
    key_heads: int | None = None,
    key_dtype: KeyDtype = None,
) -> Cache:
    """Return an empty cache.

    Args:
        config: Shape of the model.
        batch_size: Number of rows.
        max_length: Number of tokens in the longest row. Layers of full attention forget the oldest tokens of a longer row, so callers
            must refuse such a row.
        dtype: dtype of keys, values and convolution inputs. The state of the scan is float32 (float64 if dtype is).
        stacked: Stack the arrays of the periods of a layer group.
        key_heads: Number of key/value heads (see `parallel.cached_heads`); None: as in the config.
        key_dtype: dtype of keys and values, with a scale for each head of each token; None: `dtype`.
    """
    b, p, g = batch_size, config.hidden_size_per_head, key_heads or config.num_key_value_heads

    def layer(kind: LayerKind, *lead: int):
        if kind is LayerKind.MAMBA:
            h, n, k = config.mamba_num_heads, config.mamba_d_state, config.mamba_d_conv
            state_dtype = jnp.promote_types(dtype, jnp.float32)
            return MambaCache(jnp.zeros((*lead, b, k - 1, h, p), dtype), jnp.zeros((*lead, b, h, p, n), state_dtype))
        s = min(max_length, config.attention_window_size + 1) if kind is LayerKind.WINDOW else max_length
        # k and v need separate buffers, because a cache may be donated.
        k, v = (jnp.zeros((*lead, b, g, s, p), dtype if key_dtype is None else key_dtype) for _ in range(2))
        scales = [None if key_dtype is None else jnp.ones((*lead, b, g, s), jnp.float32) for _ in range(2)]
        return AttentionCache(
            k, v, jnp.zeros((*lead, b, s), jnp.int32), jnp.full((*lead, b, s), -1, jnp.int32), *scales
        )

    def periods(group: LayerGroup):
        if stacked:
            return tuple(layer(kind, group.count) for kind in group.kinds)
        return tuple(tuple(map(layer, group.kinds)) for _ in range(group.count))

    count, segment = (jnp.zeros((b,), jnp.int32) for _ in range(2))
    return Cache(tuple(map(periods, config.layer_groups)), count, segment)
