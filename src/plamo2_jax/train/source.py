"""Sources of batches for the train loop: their interface, and the source of text shards."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import grain

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.packing import Pieces
from plamo2_jax.data.pipeline import DataConfig, heldout_batches, mixed_batches, open_cache, open_mixture
from plamo2_jax.data.shards import open_shards
from plamo2_jax.data.upsampling import UpsampledPieces
from plamo2_jax.tokenizer.tokenizer import Tokenizer

SHARDS = "shards"
"""Key of config.json: the fingerprint of each folder of shards of the mixture. Older runs do not have it."""


class Source(Protocol):
    """A source of batches."""

    description: Mapping[str, Any]
    """JSON values for config.json that must be the same when the run is resumed, such as fingerprints of the data."""
    files: Mapping[str, str]
    """Text files to write to the run folder, by name."""
    targets: Sequence[int]
    """Number of tokens in each part of the mixture."""

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Return an endless iterator of this process's rows of the batches. It resumes exactly from its state."""

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Return the batches of one entry of `RunConfig.heldout`; every process gets the same number."""


class ShardSource:
    """Text from shards. `heldout` maps names to folders of held-out shards.

    Raises:
        ShardError: A held-out folder cannot be read or was written with another tokenizer.
    """

    files: Mapping[str, str] = {}

    def __init__(self, data: DataConfig, heldout: Mapping[str, Path], tokenizer: Tokenizer):
        self._data, self._tokenizer = data, tokenizer
        # They are needed at the first evaluation, but an error must come before the first step.
        cache = open_cache(data) if heldout else None
        self._heldout = {name: open_shards(folder, tokenizer, cache) for name, folder in heldout.items()}

    @functools.cached_property
    def _parts(self) -> list[Pieces | UpsampledPieces]:
        return open_mixture(self._data, self._tokenizer)

    @property
    def description(self) -> dict[str, Any]:
        """Fingerprints of the shards to train on."""
        return {SHARDS: [part.fingerprint for part in self._parts]}

    @property
    def targets(self) -> list[int]:
        """Return the number of tokens in each part of the mixture."""
        return [part.targets for part in self._parts]

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Return an endless iterator of this process's rows of the batches."""
        return mixed_batches(self._data, self._parts, process_index=process_index, process_count=process_count)

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Return the batches of one folder of held-out shards."""
        part = {"process_index": process_index, "process_count": process_count}
        return heldout_batches(self._data, self._heldout[name], self._tokenizer, **part)
