"""Batches of one process that packs only its own share of the documents (`data.packing="per_process"`).

The documents are divided among a fixed number of packing shards, and each shard packs its own rows. A process serves several consecutive
shards, and a batch is the rows of all shards in order. So the batches depend on the number of shards, but not on the number of processes
or workers that serve them.

The data position is the state of each shard by its index. After a change of the number of processes, each process takes the states of the
shards that it serves now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import grain.experimental
import numpy as np

from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError

STATES = "packing_shards"
"""Key of a data position that holds the states of packing shards by index. Other positions are the same in every process."""


class ShardedBatches(grain.DatasetIterator):
    """Endless iterator of the rows of some packing shards.

    Args:
        shards: Endless dataset of batches of each shard that this process serves, by index, in order.
        worker_processes: Number of processes that read and pack; 0: this process. Each serves some of the shards.
        prefetch_batches: Number of batches that a thread prepares in advance; 0: none.
    """

    def __init__(self, shards: Mapping[int, grain.IterDataset], worker_processes: int, prefetch_batches: int):
        super().__init__()
        self._shards, self._workers, self._prefetch = dict(shards), worker_processes, prefetch_batches
        self._states: dict[str, Any] | None = None
        self._rows: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        """Return this process's rows of the next batch."""
        if self._rows is None:
            self._rows = iter(self._dataset())
        batch, states = next(self._rows)
        self._states = json.loads(states)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the states of the shards that this process serves. Batches that were prepared in advance do not count as read."""
        if self._states is None:
            self._states = {str(index): iter(shard).get_state() for index, shard in self._shards.items()}
        return {STATES: self._states}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue at a position, which may hold the states of further shards.

        Raises:
            PlamoError: The position does not have the states of all shards that this process serves.
        """
        states = state.get(STATES, {})
        missing = [index for index in self._shards if str(index) not in states]
        if missing:
            raise PlamoError(
                f"the checkpoint has no data position for packing shard {missing[0]}: data.packing and "
                "data.packing_shards must be the same as in the run that saved it"
            )
        self.close()
        self._states = {str(index): states[str(index)] for index in self._shards}

    def close(self) -> None:
        """Stop the threads and processes that read in advance. The next batch starts them again."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _dataset(self) -> grain.IterDataset:
        groups = np.array_split(list(self._shards), max(1, min(self._workers, len(self._shards))))
        parts: list[grain.IterDataset] = []
        for group in groups:
            part: grain.IterDataset = _Group({int(index): self._shards[index] for index in group}, self._states)
            if self._workers:
                # A worker of its own for each group, so that the order does not depend on the number of workers.
                part = part.mp_prefetch(grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=2))
            parts.append(part)
        dataset = grain.experimental.ZipIterDataset(parts).map(_join_groups)
        if self._prefetch:
            dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=self._prefetch)
        return dataset


class _Group(grain.IterDataset):
    """Dataset of (rows of several shards, JSON of their states after these rows)."""

    def __init__(self, shards: Mapping[int, grain.IterDataset], states: Mapping[str, Any] | None):
        super().__init__(list(shards.values()))
        self._indices, self._states = tuple(shards), states

    def __iter__(self) -> _GroupIterator:
        iterator = _GroupIterator([parent.__iter__() for parent in self.parents], self._indices)
        if self._states is not None:
            iterator.set_state(self._states)
        return iterator

    def __str__(self) -> str:
        return f"rows of packing shards {list(self._indices)}"


class _GroupIterator(grain.DatasetIterator):
    def __init__(self, shards: Sequence[grain.DatasetIterator], indices: Sequence[int]):
        super().__init__(shards)
        self._iterators = dict(zip(map(str, indices), shards, strict=True))

    def __next__(self) -> tuple[Batch, str]:
        rows = _concatenate([next(iterator) for iterator in self._iterators.values()])
        # As text, because Grain treats a dict as part of the element's structure.
        return rows, json.dumps(self.get_state())

    def get_state(self) -> dict[str, Any]:
        return {index: iterator.get_state() for index, iterator in self._iterators.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        for index, iterator in self._iterators.items():
            iterator.set_state(state[index])


def _join_groups(groups: Sequence[tuple[Batch, str]]) -> tuple[Batch, str]:
    states: dict[str, Any] = {}
    for _, text in groups:
        states |= json.loads(text)
    return _concatenate([rows for rows, _ in groups]), json.dumps(states)


def _concatenate(parts: Sequence[Batch]) -> Batch:
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
