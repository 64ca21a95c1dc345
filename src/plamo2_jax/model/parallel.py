"""The token mixers over a mesh of devices: rows over data and fsdp, their tokens over sequence, heads over tensor.

What mixes tokens runs in `jax.shard_map`, since XLA can cut neither a recurrence nor a hand-written kernel; all around it is cut by XLA.
Inside, a kernel finds itself on one device, so a TPU's kernels serve a mesh as they do a single chip. A mesh has all four axes of
`model.axes`; rows and tokens must divide by theirs, heads that do not are computed on every device of `tensor`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from plamo2_jax.errors import PlamoError
from plamo2_jax.model.axes import DATA, FSDP, SEQUENCE, TENSOR
from plamo2_kernels import attention as attention_kernels
from plamo2_kernels import ssd as scan_kernels
from plamo2_kernels.sequence import sharded_attention, sharded_causal_conv1d, sharded_ssd

ROWS = PartitionSpec((DATA, FSDP), SEQUENCE)
"""Of [b,t,...]."""

# Splash and kernels of Pallas do not tell shard_map over which axes their outputs vary (jax 0.10.2).
_shard_map = functools.partial(jax.shard_map, check_vma=False)


def convolve(
    mesh: Mesh,
    x: Float[Array, "b t h p"],
    weight: Float[Array, "h p k"],
    segment_ids: Int[Array, "b t"],
) -> Float[Array, "b t h p"]:
    """`causal_conv1d` with silu, without states."""
    _check_divides(mesh, x)
    heads = _over_tensor(mesh, x.shape[2])
    body = functools.partial(sharded_causal_conv1d, axis_name=SEQUENCE, activation="silu")
    shard = _shard_map(
        lambda x, weight, segment_ids: body(x, weight, segment_ids=segment_ids),
        mesh=mesh,
        in_specs=(PartitionSpec(*ROWS, heads), PartitionSpec(heads), ROWS),
        out_specs=PartitionSpec(*ROWS, heads),
    )
    return shard(x, weight, segment_ids)


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
) -> Float[Array, "b t h p"]:
    """`ssd` with one group, without states."""
    _check_divides(mesh, x)
    heads = _over_tensor(mesh, x.shape[2])
    of_heads, per_head = PartitionSpec(*ROWS, heads), PartitionSpec(heads)
    body = functools.partial(sharded_ssd, axis_name=SEQUENCE, implementation=implementation)
    shard = _shard_map(
        lambda *arrays: body(*arrays[:-1], segment_ids=arrays[-1])[0],
        mesh=mesh,
        in_specs=(of_heads, of_heads, per_head, ROWS, ROWS, per_head, ROWS),
        out_specs=of_heads,
    )
    return shard(x, dt, A, B, C, D, segment_ids)


def attend(
    mesh: Mesh,
    q: Float[Array, "b t h p"],
    k: Float[Array, "b t g p"],
    v: Float[Array, "b t g p"],
    segment_ids: Int[Array, "b t"],
    window: int | None,
    implementation: attention_kernels.Implementation,
) -> Float[Array, "b t h p"]:
    """`attention`; key/value heads that do not divide go to the devices of `tensor` whose queries read them."""
    _check_divides(mesh, q)
    h, g = q.shape[2], k.shape[2]
    heads = _over_tensor(mesh, h)
    key_heads = heads and _over_tensor(mesh, g)

    def body(q, k, v, segment_ids):
        if heads and not key_heads:
            k, v = (_read_by(a, q.shape[2], h // g) for a in (k, v))
        settings = {"segment_ids": segment_ids, "window": window, "implementation": implementation}
        return sharded_attention(q, k, v, axis_name=SEQUENCE, **settings)

    of_keys = PartitionSpec(*ROWS, key_heads)
    shard = _shard_map(
        body,
        mesh=mesh,
        in_specs=(PartitionSpec(*ROWS, heads), of_keys, of_keys, ROWS),
        out_specs=PartitionSpec(*ROWS, heads),
    )
    return shard(q, k, v, segment_ids)


def _read_by(k: Float[Array, "b t g p"], queries: int, share: int) -> Float[Array, "b t g2 p"]:
    """The key heads that this device's `queries` heads read, where `share` query heads read one: that one, or one for each query head."""
    first = jax.lax.axis_index(TENSOR) * queries
    if share % queries == 0:
        return jax.lax.dynamic_slice_in_dim(k, first // share, 1, axis=2)
    return jnp.take(k, (first + jnp.arange(queries)) // share, axis=2)


def _over_tensor(mesh: Mesh, heads: int) -> str | None:
    return None if heads % mesh.shape[TENSOR] else TENSOR


def _check_divides(mesh: Mesh, x: Array) -> None:
    for name, size, over in (("b", x.shape[0], (DATA, FSDP)), ("t", x.shape[1], (SEQUENCE,))):
        devices = 1
        for axis in over:
            devices *= mesh.shape[axis]
        if size % devices:
            axes = " × ".join(f"{axis}={mesh.shape[axis]}" for axis in over)
            raise PlamoError(f"model: {name}={size} must be a multiple of the mesh's {axes}")
