"""Attention of one token of each row to a cache, which may hold keys and values as int8."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from plamo2_kernels import native
from plamo2_kernels.attention.cached import Keys
from plamo2_kernels.attention.xla import attend_one, visible_keys


def quantize_heads(x: Float[Array, "*b p"]) -> tuple[Int[Array, "*b p"], Float[Array, "*b"]]:
    """Return int8 values and float32 scales, one for each head of each token: x is about values · scales."""
    x = x.astype(jnp.float32)
    most = jnp.max(jnp.abs(x), axis=-1)
    scales = jnp.where(most > 0, most / 127, 1)
    return jnp.clip(jnp.round(x / scales[..., None]), -127, 127).astype(jnp.int8), scales


def dequantize_heads(values: Int[Array, "*b p"], scales: Float[Array, "*b"], dtype: jnp.dtype) -> Float[Array, "*b p"]:
    """Return values · scales in `dtype`."""
    return (values.astype(jnp.float32) * scales[..., None]).astype(dtype)


def attend_one_token(
    q: Float[Array, "b h p"],
    ring: Keys,
    scales: tuple[Float[Array, "b g s"], Float[Array, "b g s"]] | None,
    positions: Int[Array, " b"],
    segment_ids: Int[Array, " b"],
    *,
    window: int | None = None,
    implementation: str = "xla",
) -> Float[Array, "b h p"]:
    """Return attention of one query for each head and row.

    Args:
        q: Queries.
        ring: Keys and values of all tokens, including this one.
        scales: Scales of keys and values, if these are int8.
        positions, segment_ids: Of the queries.
        window: Number of past tokens that a query sees besides itself; None: all.
        implementation: "ffi" and "auto" call a C++ kernel for float32 queries on CPU, if it can be compiled. It reads the visible slots
            alone. Otherwise XLA operations read all slots.

    Returns:
        The attention output in the dtype of q. A query that sees no key has a finite output without meaning.
    """

    def by_xla(q, ring, scales, positions, segment_ids):
        dtype = q.dtype
        if scales is None:
            k, v = ring.k.astype(dtype), ring.v.astype(dtype)
        else:
            k, v = (dequantize_heads(*pair, dtype) for pair in zip(ring[:2], scales, strict=True))
        seen = visible_keys(segment_ids[:, None], ring.segment_ids, positions[:, None], ring.positions, window)
        return attend_one(q, k, v, seen[:, 0])

    def by_ffi(q, ring, scales, positions, segment_ids):
        of_keys, of_values = (jnp.zeros((0, 0, 0), jnp.float32),) * 2 if scales is None else scales
        arrays = (q, ring.k, ring.v, of_keys, of_values, ring.positions, ring.segment_ids, positions, segment_ids)
        limit = np.int64(-1 if window is None else window)
        return native.call("plamo2_attend_one", jax.ShapeDtypeStruct(q.shape, q.dtype), *arrays, window=limit)

    arrays = (q, ring, scales, positions, segment_ids)
    fits = q.dtype == jnp.float32 and ring.k.dtype in (jnp.float32, jnp.int8) and jax.default_backend() == "cpu"
    if implementation not in ("auto", "ffi") or not fits or not native.is_available():
        return by_xla(*arrays)
    # A program for another platform may be made on this one.
    return jax.lax.platform_dependent(*arrays, cpu=by_ffi, default=by_xla)
