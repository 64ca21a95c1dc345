"""The data position of a job, over the iterators of all processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from plamo2_jax.data.packing_shards import STATES


class DataIterator(Protocol):
    """What checkpoints need of an iterator of batches."""

    def get_state(self) -> Any:
        """Return the position of this process in the data, as JSON values."""

    def set_state(self, state: Any) -> None:
        """Continue at the position of a job, which any number of processes may have saved."""


def gather_position(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data position of the whole job. All processes call this.

    Args:
        state: State of this process's iterator. With `data.packing="per_process"`, it holds the states of the packing shards that this
            process serves, and the result holds the states of all packing shards. Otherwise it is the same in all processes and is
            returned.
    """
    if jax.process_count() == 1 or STATES not in state:
        return state
    own = np.frombuffer(json.dumps(state[STATES]).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(own)))).reshape(-1)
    # Rounded up, so that few sizes are compiled.
    padded = np.zeros(-(-int(sizes.max()) // 4096) * 4096, np.uint8)
    padded[: len(own)] = own
    texts = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    shards: dict[str, Any] = {}
    for text, size in zip(texts, sizes, strict=True):
        shards |= json.loads(text[:size].tobytes())
    return {STATES: {index: shards[index] for index in sorted(shards, key=int)}}
