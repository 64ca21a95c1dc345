"""The batch: the arrays that data sources make and that models, tasks and the train step read.

A batch is a dict of arrays [b, t], NumPy's on the host and JAX's in a compiled program:
    tokens, targets: int32, 0 at padding.
    segment_ids: int32, 1.. for the segments of a row in order, 0 for padding.
    positions: int32, from 0 within each segment.
    loss_weights: float32, 0 at padding and at targets that are not trained.
A task may add arrays [b, t, ...] of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Batch = Mapping[str, np.ndarray | jax.Array]
BatchSpec = Mapping[str, tuple[tuple[int, ...], Any]]
"""Name of an array → its shape after [b, t], and its dtype."""

STANDARD_BATCH: BatchSpec = {
    "tokens": ((), np.int32),
    "targets": ((), np.int32),
    "segment_ids": ((), np.int32),
    "positions": ((), np.int32),
    "loss_weights": ((), np.float32),
}
"""The arrays that every batch holds."""


def batch_shapes(
    b: int, t: int, added: BatchSpec | None = None, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch, to compile a program before any data is read.

    Args:
        b: Number of rows.
        t: Number of positions in a row.
        added: Arrays besides the standard ones.
        sharding: Sharding of every array over rows and positions.
    """
    return {
        name: jax.ShapeDtypeStruct((b, t, *more), dtype, sharding=sharding)
        for name, (more, dtype) in {**STANDARD_BATCH, **(added or {})}.items()
    }
