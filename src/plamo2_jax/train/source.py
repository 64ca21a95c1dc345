"""Where a run's batches come from: shards of text, or whatever else a verb hands to the loop."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import grain

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.pipeline import DataConfig, Elements, heldout_batches, mixed_batches, open_mixture
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class Source(Protocol):
    """A source of batches for the train loop."""

    description: Mapping[str, Any]
    """JSON values for config.json that must be the same when the run is resumed: fingerprints of the data."""
    files: Mapping[str, str]
    """Texts by file name, written beside the tokenizer in the run's folder."""
    targets: Sequence[int]
    """Tokens in each part of the mixture."""

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Return an endless iterator of this process's rows of the batches. Its state resumes it exactly."""

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Return the batches of the held-out data of this name in `RunConfig.heldout`; the same number in every process."""


class ShardSource:
    """Text from shards.

    Args:
        data: how it is mixed, shuffled and packed.
        heldout: folders of held-out shards by name.
        tokenizer: the one that the shards were written with.
    """

    description: Mapping[str, Any] = {}
    files: Mapping[str, str] = {}

    def __init__(self, data: DataConfig, heldout: Mapping[str, Path], tokenizer: Tokenizer):
        self._data, self._heldout, self._tokenizer = data, heldout, tokenizer

    @functools.cached_property
    def _parts(self) -> list[Elements]:
        return open_mixture(self._data, self._tokenizer)

    @property
    def targets(self) -> list[int]:
        """Return the number of tokens in each part of the mixture."""
        return [part.targets for part in self._parts]

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Return an endless iterator of this process's rows of the batches."""
        return mixed_batches(self._data, self._parts, process_index=process_index, process_count=process_count)

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Return the batches of one folder of held-out shards."""
        return heldout_batches(
            self._data,
            self._heldout[name],
            self._tokenizer,
            process_index=process_index,
            process_count=process_count,
        )
