"""The operations that mix tokens, on one device or on a mesh: rows over data × fsdp, tokens over sequence, heads over tensor.

XLA can divide neither a recurrence nor a hand-written kernel. So on a mesh these operations run in `jax.shard_map`, where each device calls
the kernel on its part of the arrays. XLA divides the rest of the model. A mesh has the four axes of `model.axes`. The numbers of rows and
tokens must be multiples of their mesh axes. Heads that are not a multiple of tensor are computed on all its devices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from plamo2_jax.errors import PlamoError
from plamo2_jax.model.axes import DATA, FSDP, SEQUENCE, TENSOR
from plamo2_jax.model.cache import AttentionCache, Context
from plamo2_kernels import attention as attention_kernels
from plamo2_kernels import ssd as scan_kernels
from plamo2_kernels.conv1d import causal_conv1d
from plamo2_kernels.sequence import sharded_attention, sharded_causal_conv1d, sharded_ssd

# Splash attention and Pallas kernels do not report over which mesh axes their outputs vary (jax 0.10.2).
_shard_map = functools.partial(jax.shard_map, check_vma=False)


def divided(mesh: Mesh | None) -> Mesh | None:
    """Return the mesh over which XLA divides the arrays of the caller, or None.

    Inside a `jax.shard_map` over all axes, each device has its own arrays, as without a mesh.
    """
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    return None if mesh is None or manual >= set(mesh.axis_names) else mesh


def convolve(
    mesh: Mesh | None,
    x: Float[Array, "b t h p"],
    weight: Float[Array, "h p k"],
    segment_ids: Int[Array, "b t"],
    state: Float[Array, "b k-1 h p"] | None,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b k-1 h p"] | None]:
    """Compute `causal_conv1d` with silu. On a mesh, the final state is None unless an initial state is given."""

    def body(x, weight, segment_ids, state):
        if state is None and mesh is not None:
            y = sharded_causal_conv1d(x, weight, axis_name=SEQUENCE, segment_ids=segment_ids, activation="silu")
            return y, None
        return causal_conv1d(x, weight, segment_ids=segment_ids, initial_state=state, activation="silu")

    if mesh is None:
        return body(x, weight, segment_ids, state)
    rows, heads = _rows(mesh, x, cached=state is not None), _over_tensor(mesh, x.shape[2])
    of_heads = PartitionSpec(*rows, heads)
    in_specs = (of_heads, PartitionSpec(heads), rows, of_heads)
    return _shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=(of_heads, of_heads))(x, weight, segment_ids, state)


def scan(
    mesh: Mesh | None,
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    segment_ids: Int[Array, "b t"],
    state: Float[Array, "b h p n"] | None,
    continues: Bool[Array, " b"] | None,
    implementation: scan_kernels.Implementation,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"] | None]:
    """Compute `ssd` with one group. On a mesh, the final state is None unless an initial state is given."""

    def body(*arrays):
        *arrays, segment_ids, state, continues = arrays
        settings = {"segment_ids": segment_ids, "implementation": implementation}
        if state is None and mesh is not None:
            return sharded_ssd(*arrays, axis_name=SEQUENCE, **settings)[0], None
        return scan_kernels.ssd(*arrays, initial_state=state, continues=continues, **settings)

    arrays = (x, dt, A, B, C, D, segment_ids, state, continues)
    if mesh is None:
        return body(*arrays)
    rows, heads = _rows(mesh, x, cached=state is not None), _over_tensor(mesh, x.shape[2])
    of_heads, per_head, of_state = PartitionSpec(*rows, heads), PartitionSpec(heads), PartitionSpec(rows[0], heads)
    in_specs = (of_heads, of_heads, per_head, rows, rows, per_head, rows, of_state, PartitionSpec(rows[0]))
    return _shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=(of_heads, of_state))(*arrays)


def attend(
    mesh: Mesh | None,
    cache: AttentionCache | None,
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    context: Context,
    *,
    window: int | None,
    implementation: attention_kernels.Implementation,
    one_token: str = "xla",
) -> tuple[Float[Array, "b t h p"], AttentionCache | None]:
    """Compute `attention` without a cache, or `AttentionCache.attend` with one.

    Query heads are divided over tensor. Key/value heads that are not a multiple of tensor are sent to the devices whose queries read them.
    """

    def body(cache, q, k, v, context):
        settings = {"window": window, "implementation": implementation}
        k, v = read(k), read(v)
        if cache is not None:
            return cache.attend(q, k, v, context, **settings, one_token=one_token)
        settings["segment_ids"] = context.segment_ids
        if mesh is None:
            return attention_kernels.attention(q, k, v, **settings), None
        return sharded_attention(q, k, v, axis_name=SEQUENCE, **settings), None

    heads, key_heads, read = _split_heads(mesh, q.shape[2], k.shape[2])
    if mesh is None:
        return body(cache, q, k, v, context)
    rows = _rows(mesh, q, cached=cache is not None)
    of_heads, of_keys = PartitionSpec(*rows, heads), PartitionSpec(*rows, key_heads)
    of_cache = None if cache is None else _of_cache(cache, rows, heads)
    in_specs = (of_cache, of_heads, of_keys, of_keys, _of_context(context, rows))
    shard = _shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=(of_heads, of_cache))
    return shard(cache, q, k, v, context)


def write(
    mesh: Mesh | None,
    cache: AttentionCache,
    h: int,
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    context: Context,
) -> AttentionCache:
    """Compute `AttentionCache.write` for a layer with h query heads."""

    def body(cache, k, v, context):
        return cache.write(read(k), read(v), context)

    heads, key_heads, read = _split_heads(mesh, h, k.shape[2])
    if mesh is None:
        return body(cache, k, v, context)
    rows = _rows(mesh, k, cached=True)
    of_keys, of_cache = PartitionSpec(*rows, key_heads), _of_cache(cache, rows, heads)
    in_specs = (of_cache, of_keys, of_keys, _of_context(context, rows))
    return _shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=of_cache)(cache, k, v, context)


def gather_channels(mesh: Mesh | None, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Divide rows over data × fsdp, with all channels of a token on one device, in a model with a cache."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _rows(mesh, x, cached=True)))


def cached_heads(mesh: Mesh | None, h: int, g: int) -> int:
    """Return the number of key/value heads in the cache of a layer with h query heads and g key/value heads.

    Each device caches the heads that its queries read. If several devices read a head, the cache has a copy for each of them.
    """
    if mesh is None or not _over_tensor(mesh, h) or _over_tensor(mesh, g):
        return g
    return mesh.shape[TENSOR] * _heads_read(h // mesh.shape[TENSOR], h // g)


def _of_cache(cache: AttentionCache, rows: PartitionSpec, heads: str | None) -> AttentionCache:
    of_keys = PartitionSpec(rows[0], heads)
    scales = None if cache.k_scales is None else of_keys
    return AttentionCache(of_keys, of_keys, rows, rows, scales, scales)


def _of_context(context: Context, rows: PartitionSpec) -> Context:
    per_row = PartitionSpec(rows[0])
    return context.replace(segment_ids=rows, positions=rows, count=per_row, continues=per_row)


def _split_heads(mesh: Mesh | None, h: int, g: int) -> tuple[str | None, str | None, Callable[[Array], Array]]:
    """Return the mesh axis of query heads, that of key/value heads, and a function that picks the key/value heads a device reads."""
    heads = mesh and _over_tensor(mesh, h)
    key_heads = heads and _over_tensor(mesh, g)
    if key_heads or not heads:
        return heads, key_heads, lambda k: k
    return heads, None, lambda k: _read_by(k, h // mesh.shape[TENSOR], h // g)


def _heads_read(queries: int, share: int) -> int:
    """Return the number of key/value heads that a device reads. For the arguments, see `_read_by`."""
    return 1 if share % queries == 0 else queries


def _read_by(k: Float[Array, "b t g p"], queries: int, share: int) -> Float[Array, "b t g2 p"]:
    """Return the key/value heads that this device's query heads read: a single one, or one for each query head.

    Args:
        queries: Number of query heads of a device.
        share: Number of query heads that read the same key/value head.
    """
    first = jax.lax.axis_index(TENSOR) * queries
    if _heads_read(queries, share) == 1:
        return jax.lax.dynamic_slice_in_dim(k, first // share, 1, axis=2)
    return jnp.take(k, (first + jnp.arange(queries)) // share, axis=2)


def _over_tensor(mesh: Mesh, heads: int) -> str | None:
    return None if heads % mesh.shape[TENSOR] else TENSOR


def _rows(mesh: Mesh, x: Array, *, cached: bool = False) -> PartitionSpec:
    """Return how [b, t, ...] is divided. With a cache, tokens are not divided, nor are rows that are not a multiple of their mesh axes.

    Raises:
        PlamoError: Without a cache, rows or tokens are not a multiple of their mesh axes.
    """
    for name, size, over in (("b", x.shape[0], (DATA, FSDP)), ("t", x.shape[1], (SEQUENCE,))):
        if size % math.prod(mesh.shape[axis] for axis in over):
            if cached and name == "b":
                return PartitionSpec(None, None)
            if not cached:
                axes = " × ".join(f"{axis}={mesh.shape[axis]}" for axis in over)
                raise PlamoError(f"model: {name}={size} must be a multiple of the mesh's {axes}")
    return PartitionSpec((DATA, FSDP), None if cached else SEQUENCE)
