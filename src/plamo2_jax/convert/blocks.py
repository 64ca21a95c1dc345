"""Arrays in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Progress = Callable[[int, int], None]
"""Called with the bytes just done and those of the whole."""

# Small enough for caches and to leave peak memory alone, large enough for disks.
BLOCK_BYTES = 16 << 20


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis, of about BLOCK_BYTES each and at least one row."""
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    return (slice(start, start + rows) for start in range(0, len(array), rows))
