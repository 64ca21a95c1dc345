"""Examples in memory, and the source of batches that mixes and packs them."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from plamo2_jax.data.batch import Batch
from plamo2_jax.data.files import find_files
from plamo2_jax.data.packing import Collator
from plamo2_jax.data.pipeline import DataConfig, mixed_batches, one_pass
from plamo2_jax.data.shares import Share, even_range
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.chat_template import FILE_NAME, ChatTemplate

_HASHED_AS = {"positions": "places", "role": "sides"}
"""Earlier names of arrays. Fingerprints still use them."""


class Examples:
    """Random access to examples, which are dicts of arrays of equal length: elements for `data.pipeline.mixed_batches`.

    All examples are concatenated in one array per name, because millions of small arrays need more memory.

    Args:
        examples: dicts with the same names; the arrays of an example have the same length of at least 1.

    Raises:
        PlamoError: there is no example: at least one is needed.
    """

    def __init__(self, examples: Sequence[Mapping[str, np.ndarray]]):
        if not examples:
            raise PlamoError("there is no example")
        names = tuple(examples[0])
        lengths = [len(example[names[0]]) for example in examples]
        self._ends = np.cumsum([0, *lengths])
        self._arrays = {name: np.concatenate([example[name] for example in examples]) for name in names}

    @property
    def targets(self) -> int:
        """Number of positions in all examples."""
        return int(self._ends[-1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """BLAKE2b of all arrays and lengths. Runs and stored log-probabilities contain it, so it must not change with a renaming."""
        digest = hashlib.blake2b(self._ends.astype("<i8").tobytes(), digest_size=16)
        for name, array in sorted(self._arrays.items()):
            digest.update(_HASHED_AS.get(name, name).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def with_array(self, name: str, values: np.ndarray) -> Examples:
        """Return the same examples with one more array, [positions]: the values of all examples, concatenated."""
        if len(values) != self.targets:
            raise PlamoError(f"{name} has {len(values)} values for {self.targets} positions")
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other._arrays = {**self._arrays, name: values}
        return other

    def share(self, index: int, count: int) -> Share:
        """Return share `index` of `count`: consecutive examples, with about equally many positions in each share."""
        start, stop = even_range(np.diff(self._ends), index, count)
        return Share(self, start, stop, int(self._ends[stop] - self._ends[start]))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return one example."""
        start, end = self._ends[index], self._ends[index + 1]
        return {name: array[start:end] for name, array in self._arrays.items()}

    def __repr__(self) -> str:
        # Grain stores this in the iterator's state, which must be the same when a run is resumed.
        return f"Examples({len(self)}, {self.fingerprint})"


class ExampleSource:
    """Source of batches of examples (`train.source.Source`).

    Held-out files are read at once, so a bad file ends a run before it starts. The training files are read on demand.

    Args:
        data: the training files, how they are mixed, and the shape of a batch.
        heldout: held-out files by name.
        template: chat template, which is written to the run folder.
        collator: data collator of the examples.
        read: reads and encodes a file.
        add_arrays: adds arrays to the examples that are not part of their fingerprint in `description`.
        description: further values of `description`.
    """

    def __init__(
        self,
        data: DataConfig,
        heldout: Mapping[str, Path],
        template: ChatTemplate,
        collator: Collator,
        read: Callable[[Path], Examples],
        add_arrays: Callable[[Examples], Examples] = lambda examples: examples,
        description: Mapping[str, Any] | None = None,
    ):
        self._data, self._collator, self._read, self._add_arrays = data, collator, read, add_arrays
        for name, path in heldout.items():
            _require_heldout(name, path)
        self._heldout = {name: add_arrays(read(path)) for name, path in heldout.items()}
        self._further = description or {}
        self.files = {FILE_NAME: template.source}

    @functools.cached_property
    def _parts(self) -> list[Examples]:
        return [self._read(item.path) for item in self._data.mixture]

    @property
    def description(self) -> dict[str, Any]:
        """Fingerprints of the examples to train on, and the values given on construction."""
        return {"examples": [part.fingerprint for part in self._parts], **self._further}

    @property
    def targets(self) -> list[int]:
        """Number of tokens in each file of the mixture."""
        return [part.targets for part in self._parts]

    def train(self, process_index: int, process_count: int) -> grain.DatasetIterator[Batch]:
        """Return an endless iterator of this process's rows of the batches."""
        parts = [self._add_arrays(part) for part in self._parts]
        return mixed_batches(
            self._data, parts, self._collator, process_index=process_index, process_count=process_count
        )

    def heldout(self, name: str, process_index: int, process_count: int) -> Iterable[Batch]:
        """Return the batches of one held-out file."""
        return one_pass(
            self._data, self._heldout[name], self._collator, process_index=process_index, process_count=process_count
        )


def _require_heldout(name: str, path: Path) -> None:
    try:
        find_files(path)
    except PlamoError as error:
        raise PlamoError(
            f"heldout[{name!r}]: {error}. Put some records there that are not trained on, or set heldout={{}} in the config"
        ) from error
