"""Token ids in memory, example by example, as what the pipeline mixes and packs into rows."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from plamo2_jax.errors import PlamoError

_HASHED_AS = {"positions": "places", "role": "sides"}
"""What names stand for in fingerprints: the names that the arrays once had."""


class Examples:
    """Random access to examples, each a dict of arrays of one length: a source for `data.pipeline.mixed_batches`.

    The arrays lie end to end, one a name, so that a million examples are a few large arrays and not millions of small ones.

    Args:
        examples: dicts of the same names; the arrays of one example have one length of at least 1.

    Raises:
        ValueError: there is no example.
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
        """Positions in all examples."""
        return int(self._ends[-1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """BLAKE2b of all arrays and lengths. Runs and log-probabilities on disk hold it, so it does not follow a change of a name."""
        digest = hashlib.blake2b(self._ends.astype("<i8").tobytes(), digest_size=16)
        for name, array in sorted(self._arrays.items()):
            digest.update(_HASHED_AS.get(name, name).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def with_array(self, name: str, values: np.ndarray) -> Examples:
        """The same examples with one more array, given end to end [positions]."""
        if len(values) != self.targets:
            raise PlamoError(f"{name} has {len(values)} values for {self.targets} positions")
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other._arrays = {**self._arrays, name: values}
        return other

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One example."""
        start, end = self._ends[index], self._ends[index + 1]
        return {name: array[start:end] for name, array in self._arrays.items()}

    def __repr__(self) -> str:
        # Grain puts it into the iterator's state, which must be the same when a run goes on.
        return f"Examples({len(self)}, {self.fingerprint})"
