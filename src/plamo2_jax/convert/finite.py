"""Whether parameters hold NaN or infinity, which no operation on weights gets rid of."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from plamo2_jax.convert.blocks import blocks

_EXPONENT = np.uint16(0x7F80)
"""Bits of a bfloat16 that are all set in NaN and infinity only."""


def is_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    if not array.ndim:
        array = array.reshape(1)
    if array.dtype == ml_dtypes.bfloat16:
        # ml_dtypes' own isfinite takes five times as long.
        return not any(((array[rows].view(np.uint16) & _EXPONENT) == _EXPONENT).any() for rows in blocks(array))
    return all(np.isfinite(array[rows]).all() for rows in blocks(array))


def find_nonfinite(params: Any) -> str | None:
    """The path of the first parameter that holds NaN or infinity, or None.

    Args:
        params: tree of arrays, of NumPy or on any devices.
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    on_devices = {path: leaf for path, leaf in leaves.items() if not _is_in_memory(leaf)}
    found = {path: is_finite(np.asarray(leaf)) for path, leaf in leaves.items() if path not in on_devices}
    if on_devices:
        found |= jax.device_get(
            jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))(on_devices)
        )
    return next((path for path in leaves if not found[path]), None)


def _is_in_memory(leaf: Any) -> bool:
    """Whether NumPy can look at an array without copying it."""
    if not isinstance(leaf, jax.Array):
        return True
    return len(leaf.sharding.device_set) == 1 and next(iter(leaf.sharding.device_set)).platform == "cpu"
