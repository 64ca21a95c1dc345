"""Where a run's batches come from: shards of text, or whatever else a verb hands to the loop."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import grain

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.pipeline import Elements, heldout_batches, mixed_batches, open_mixture
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import PretrainConfig


class Source(Protocol):
    """What the train loop reads."""

    description: Mapping[str, Any]
    """JSON values that go into config.json and must be the same when the run goes on: fingerprints of what is read."""
    files: Mapping[str, str]
    """Texts by name that belong beside the tokenizer in the run's folder."""
    targets: Sequence[int]
    """Tokens in each part of the mixture."""

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Batches without end, this process's rows of them, continued exactly by their state."""

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Batches of the held-out data that `config.heldout` has under this name; the same number in every process."""


class ShardSource:
    """Text from shards, as `config.data` mixes it."""

    description: Mapping[str, Any] = {}
    files: Mapping[str, str] = {}

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer):
        self._config, self._tokenizer = config, tokenizer

    @functools.cached_property
    def _parts(self) -> list[Elements]:
        return open_mixture(self._config.data, self._tokenizer)

    @property
    def targets(self) -> list[int]:
        """See `Source`."""
        return [part.targets for part in self._parts]

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """See `data.pipeline.train_iterator`."""
        return mixed_batches(self._config.data, self._parts, process_index=process_index, process_count=process_count)

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """See `data.pipeline.heldout_batches`."""
        return heldout_batches(
            self._config.data,
            self._config.heldout[name],
            self._tokenizer,
            process_index=process_index,
            process_count=process_count,
        )
