"""Communication with other shards of a row."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from plamo2_kernels.padding import pad_tokens


def preceding(x: Shaped[Array, "b t *c"], size: int, axis_name: str) -> Shaped[Array, "b size *c"]:
    """Return the last `size` tokens before this shard, from as many shards as needed, with zeros before the start of the row.

    Zeros are also correct for segment ids: 0 is padding, which no token sees.
    """
    t, shards = x.shape[1], lax.axis_size(axis_name)
    farthest = min(-(-size // t), shards - 1)
    pieces = []
    for hop in range(farthest, 0, -1):
        piece = x[:, t - min(t, size - (hop - 1) * t) :]
        pieces.append(lax.ppermute(piece, axis_name, [(i, i + hop) for i in range(shards - hop)]))
    halo = jnp.concatenate(pieces, axis=1) if pieces else x[:, :0]
    return pad_tokens(halo, size - halo.shape[1], 0)


def rest_of_the_row(x: Shaped[Array, "b t *c"], axis_name: str) -> Shaped[Array, "b rest *c"]:
    """Return all other shards of the row: zeros for later shards first, then the earlier shards in order.

    With the zeros first, the tokens of the shard itself come last, so all shards run the same program with the same mask.
    """
    shards, here = lax.axis_size(axis_name), lax.axis_index(axis_name)
    row = lax.all_gather(x, axis_name)
    turned = jnp.roll(row, shards - 1 - here, axis=0)[:-1]
    earlier = jnp.arange(shards - 1) >= shards - 1 - here
    turned = jnp.where(earlier.reshape(-1, *[1] * x.ndim), turned, 0)
    return jnp.moveaxis(turned, 0, 1).reshape(x.shape[0], -1, *x.shape[2:])


def exchange_halves(x: Shaped[Array, "b t *c"], axis_name: str) -> Shaped[Array, "b t *c"]:
    """Exchange the second half of this shard, shard i, with the second half of shard `shards - 1 - i`. t must be even.

    Two exchanges give the original order.
    """
    first, second = jnp.split(x, 2, axis=1)
    shards = lax.axis_size(axis_name)
    received = lax.ppermute(second, axis_name, [(i, shards - 1 - i) for i in range(shards)])
    return jnp.concatenate([first, received], axis=1)
