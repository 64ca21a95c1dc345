"""Finding NaN and infinity in parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from plamo2_jax.convert.chunked_io import blocks

_EXPONENT = np.uint16(0x7F80)
"""Exponent bits of a bfloat16. All of them are set only in NaN and infinity."""
_FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def is_finite(array: np.ndarray) -> bool:
    """Return whether an array holds neither NaN nor infinity."""
    if not array.ndim:
        array = array.reshape(1)
    if array.dtype == ml_dtypes.bfloat16:
        # isfinite of ml_dtypes takes five times as long.
        return not any(((array[rows].view(np.uint16) & _EXPONENT) == _EXPONENT).any() for rows in blocks(array))
    return all(np.isfinite(array[rows]).all() for rows in blocks(array))


def find_nonfinite(params: Any) -> str | None:
    """Return the path of the first parameter that holds NaN or infinity, or None.

    Args:
        params: Tree of NumPy arrays or of JAX arrays on any devices. Quantized values are not looked at.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.dtype in _FLOATS
    }
    on_devices = {path: leaf for path, leaf in leaves.items() if not _is_in_memory(leaf)}
    found = {path: is_finite(np.asarray(leaf)) for path, leaf in leaves.items() if path not in on_devices}
    if on_devices:
        all_finite = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))
        found |= jax.device_get(all_finite(on_devices))
    return next((path for path in leaves if not found[path]), None)


def _is_in_memory(leaf: Any) -> bool:
    """Return whether NumPy can view an array without a copy."""
    if not isinstance(leaf, jax.Array):
        return True
    return len(leaf.sharding.device_set) == 1 and next(iter(leaf.sharding.device_set)).platform == "cpu"
