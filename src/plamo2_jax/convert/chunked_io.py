"""Blocks of bounded size, for reading and writing large arrays in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Progress = Callable[[int, int], None]
"""Function called after each block with its bytes and the total bytes."""

# Small enough not to raise peak memory, large enough for full disk speed.
BLOCK_BYTES = 16 << 20


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Return slices of the first axis with about BLOCK_BYTES each, and at least one row."""
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    return (slice(start, min(start + rows, len(array))) for start in range(0, len(array), rows))
