"""The token mixers over a mesh of devices: rows over data and fsdp, their tokens over sequence, heads over tensor.

What mixes tokens runs in `jax.shard_map`, since XLA can cut neither a recurrence nor a hand-written kernel; all around it is cut by XLA.
Inside, a kernel finds itself on one device, so a TPU's kernels serve a mesh as they do a single chip. A mesh has all four axes of
`model.axes`; rows and tokens must divide by theirs, heads that do not are computed on every device of `tensor`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from plamo2_jax.errors import PlamoError
from plamo2_jax.model.axes import DATA, FSDP, SEQUENCE, TENSOR
from plamo2_jax.model.cache import AttentionCache
from plamo2_kernels import attention as attention_kernels
from plamo2_kernels import ssd as scan_kernels
from plamo2_kernels.conv1d import causal_conv1d
from plamo2_kernels.sequence import sharded_attention, sharded_causal_conv1d, sharded_ssd

# Splash and kernels of Pallas do not tell shard_map over which axes their outputs vary (jax 0.10.2).
_shard_map = functools.partial(jax.shard_map, check_vma=False)


def convolve(
    mesh: Mesh,
    x: Float[Array, "b t h p"],
    weight: Float[Array, "h p k"],
    segment_ids: Int[Array, "b t"],
    state: Float[Array, "b k-1 h p"] | None = None,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b k-1 h p"] | None]:
    """`causal_conv1d` with silu; without a state before the rows there is none after them."""
    rows = _rows(mesh, x, cached=state is not None)
    heads = _over_tensor(mesh, x.shape[2])
    of_heads = PartitionSpec(*rows, heads)
    if state is None:
        body = functools.partial(sharded_causal_conv1d, axis_name=SEQUENCE, activation="silu")
        shard = _shard_map(
            lambda x, weight, segment_ids: body(x, weight, segment_ids=segment_ids),
            mesh=mesh,
            in_specs=(of_heads, PartitionSpec(heads), rows),
            out_specs=of_heads,
        )
        return shard(x, weight, segment_ids), None
    shard = _shard_map(
        lambda x, weight, segment_ids, state: causal_conv1d(
            x, weight, segment_ids=segment_ids, initial_state=state, activation="silu"
        ),
        mesh=mesh,
        in_specs=(of_heads, PartitionSpec(heads), rows, of_heads),
        out_specs=(of_heads, of_heads),
    )
    return shard(x, weight, segment_ids, state)


def scan(
    mesh: Mesh,
    x: Float[Array, "b t h p"],
    dt: Float[Array, "b t h"],
    A: Float[Array, " h"],
    B: Float[Array, "b t g n"],
    C: Float[Array, "b t g n"],
    D: Float[Array, " h"],
    segment_ids: Int[Array, "b t"],
    implementation: scan_kernels.Implementation,
    state: Float[Array, "b h p n"] | None = None,
    continues: Bool[Array, " b"] | None = None,
) -> tuple[Float[Array, "b t h p"], Float[Array, "b h p n"] | None]:
    """`ssd` with one group; without a state before the rows there is none after them."""
    rows = _rows(mesh, x, cached=state is not None)
    heads = _over_tensor(mesh, x.shape[2])
    of_heads, per_head = PartitionSpec(*rows, heads), PartitionSpec(heads)
    in_specs = (of_heads, of_heads, per_head, rows, rows, per_head, rows)
    if state is None:
        body = functools.partial(sharded_ssd, axis_name=SEQUENCE, implementation=implementation)
        shard = _shard_map(
            lambda *arrays: body(*arrays[:-1], segment_ids=arrays[-1])[0],
            mesh=mesh,
            in_specs=in_specs,
            out_specs=of_heads,
        )
        return shard(x, dt, A, B, C, D, segment_ids), None

    def body(*arrays):
        *arrays, segment_ids, state, continues = arrays
        return scan_kernels.ssd(
            *arrays,
            segment_ids=segment_ids,
            initial_state=state,
            continues=continues,
            implementation=implementation,
        )

    of_state = PartitionSpec(rows[0], heads)
    shard = _shard_map(
        body,
        mesh=mesh,
        in_specs=(*in_specs, of_state, PartitionSpec(rows[0])),
        out_specs=(of_heads, of_state),
    )
    return shard(x, dt, A, B, C, D, segment_ids, state, continues)


def attend(
    mesh: Mesh,
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    segment_ids: Int[Array, "b t"],
    *,
    window: int | None,
    implementation: attention_kernels.Implementation,
) -> Float[Array, "b t h p"]:
    """`attention`; key/value heads that do not divide go to the devices of `tensor` whose queries read them."""
    rows = _rows(mesh, q)
    heads, key_heads, read = _split_heads(mesh, q.shape[2], k.shape[2])

    def body(q, k, v, segment_ids):
        settings = {"segment_ids": segment_ids, "window": window, "implementation": implementation}
        return sharded_attention(q, read(k), read(v), axis_name=SEQUENCE, **settings)

    of_heads, of_keys = PartitionSpec(*rows, heads), PartitionSpec(*rows, key_heads)
    shard = _shard_map(body, mesh=mesh, in_specs=(of_heads, of_keys, of_keys, rows), out_specs=of_heads)
    return shard(q, k, v, segment_ids)


def attend_cached(
    mesh: Mesh,
    cache: AttentionCache,
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"],
    count: Int[Array, " b"],
    *,
    window: int | None,
    implementation: attention_kernels.Implementation,
) -> tuple[Float[Array, "b t h p"], AttentionCache]:
    """`AttentionCache.attend`, divided like `attend`; tokens stay whole."""
    rows = _rows(mesh, q, cached=True)
    heads, key_heads, read = _split_heads(mesh, q.shape[2], k.shape[2])

    def body(cache, *arrays):
        return cache.attend(*arrays, window=window, implementation=implementation, read=read)

    of_heads, of_keys = PartitionSpec(*rows, heads), PartitionSpec(*rows, key_heads)
    of_cache = AttentionCache(of_keys, of_keys, rows, rows)
    shard = _shard_map(
        body,
        mesh=mesh,
        in_specs=(of_cache, of_heads, of_keys, of_keys, rows, rows, PartitionSpec(rows[0])),
        out_specs=(of_heads, of_cache),
    )
    return shard(cache, q, k, v, positions, segment_ids, count)


def _split_heads(mesh: Mesh, h: int, g: int) -> tuple[str | None, str | None, Callable[[Array], Array]]:
    """The mesh axes of query heads and of key heads, and what picks a device's key heads out of those it holds."""
    heads = _over_tensor(mesh, h)
    key_heads = heads and _over_tensor(mesh, g)
    if key_heads or not heads:
        return heads, key_heads, lambda k: k
    return heads, None, lambda k: _read_by(k, h // mesh.shape[TENSOR], h // g)


def _read_by(k: Float[Array, "b t g p"], queries: int, share: int) -> Float[Array, "b t g2 p"]:
    """The key heads that this device's `queries` heads read, where `share` query heads read one: that one, or one for each query head."""
    first = jax.lax.axis_index(TENSOR) * queries
    if share % queries == 0:
        return jax.lax.dynamic_slice_in_dim(k, first // share, 1, axis=2)
    return jnp.take(k, (first + jnp.arange(queries)) // share, axis=2)


def _over_tensor(mesh: Mesh, heads: int) -> str | None:
    return None if heads % mesh.shape[TENSOR] else TENSOR


def _rows(mesh: Mesh, x: Array, *, cached: bool = False) -> PartitionSpec:
    """How [b,t,...] is divided. With a cache, tokens stay whole, and so do rows that do not divide.

    Raises:
        PlamoError: without a cache, rows or tokens do not divide.
    """
    for name, size, over in (("b", x.shape[0], (DATA, FSDP)), ("t", x.shape[1], (SEQUENCE,))):
        if size % math.prod(mesh.shape[axis] for axis in over):
            if cached and name == "b":
                return PartitionSpec(None, None)
            if not cached:
                axes = " × ".join(f"{axis}={mesh.shape[axis]}" for axis in over)
                raise PlamoError(f"model: {name}={size} must be a multiple of the mesh's {axes}")
    return PartitionSpec((DATA, FSDP), None if cached else SEQUENCE)
