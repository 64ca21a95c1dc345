"""Fluency and truthfulness of answers, from the frequencies of character n-grams in reference texts.

Definition: pfgen-bench (arXiv:2502.09316), `pfgen_eval.py` of github.com/pfnet-research/pfgen-bench at 03db7c4. The references of a
question form one or more pools. Each n-gram of a reference has an id and the number of references that contain it, for each pool. The id
of an n-gram is found by the id of its first n - 1 characters and its last character, so a few array operations score many answers. All
sums are taken in the benchmark's order, so the scores have the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from plamo2_jax.errors import PlamoError

LONGEST_NGRAM = 10
"""Length of the longest n-grams that count for fluency, in characters."""
SUPPORT_NGRAM = 3
"""Length of the n-grams that support a character, in characters."""
READ = 200
"""Number of characters of an answer that are read for fluency. Truthfulness reads one more."""
FREE = 100
"""Length of the longest answer without a discount, in characters."""
_IGNORED = "^$、。・「」『』（）【】［］〈〉《》"
_BATCH = 1024


def discount(lengths: np.ndarray) -> np.ndarray:
    """Return the factor for texts of these lengths in characters, float64: 1 up to 100, 0 at 150, negative above."""
    return 1 - np.maximum(lengths - FREE, 0) / 50


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Texts between a "^" and a "$", one after another. An unknown character, -1, follows each."""

    points: np.ndarray
    """[total] int64: Unicode code points."""
    rows: np.ndarray
    """[total] int64: index of the text."""
    columns: np.ndarray
    """[total] int64: index of the character in its text; 0 is "^"."""
    lengths: np.ndarray
    """[texts] int64: number of characters, with "^" and "$"."""

    @staticmethod
    def of(texts: Sequence[str], limit: int | None = None) -> _Texts:
        """Return texts with their frame, cut after `limit` characters."""
        framed = [f"^{text}$"[:limit] for text in texts]
        lengths = np.array([len(text) for text in framed])
        # "\0" is in the place of the unknown character.
        points = np.frombuffer("\0".join([*framed, ""]).encode("utf-32-le", "surrogatepass"), np.uint32).astype(
            np.int64
        )
        ends = np.cumsum(lengths + 1)
        points[ends - 1] = -1
        columns = np.arange(len(points)) - np.repeat(ends - lengths - 1, lengths + 1)
        return _Texts(points, np.repeat(np.arange(len(texts)), lengths + 1), columns, lengths)


@dataclasses.dataclass(frozen=True)
class _Level:
    """The n-grams of one length.

    The key of an n-gram is the id of its first n - 1 characters, times the number of characters in the references, plus the index of its
    last character among them.
    """

    keys: np.ndarray
    """[g] uint32 or int64, ascending. The index of a key is the id of the n-gram."""
    counts: np.ndarray
    """[pools, g] int16 or int32: number of references of each pool that contain the n-gram."""


class NgramScorer:
    """Scores answers with the references of a question.

    Args:
        pools: reference texts by the name of the pool.

    Raises:
        PlamoError: the references are too long for 64-bit keys, which is far above 1,000 references of 1,000 characters.
    """

    def __init__(self, pools: Mapping[str, Sequence[str]]):
        self._sizes = np.array([len(references) for references in pools.values()])
        texts = _Texts.of([text for references in pools.values() for text in references])
        pool_of = np.repeat(np.arange(len(pools)), self._sizes)
        self._characters = np.unique(texts.points[texts.points >= 0])
        total = len(texts.points)
        if total**2 * len(self._characters) >= 2**63:
            raise PlamoError(f"the references have {total:,} characters in total: at most 10,000,000 are allowed")
        numbers = self._numbers(texts)
        self._levels: list[_Level] = []
        gains = np.zeros((len(pools), total))
        starts, ids, known = np.arange(total), np.zeros(total, np.int64), 1
        for n in range(1, LONGEST_NGRAM + 1):
            starts, keys = self._extend(starts, ids, numbers, n)
            inside = _inside(texts, starts, n)
            keys, starts, is_new, is_first = _sort(keys[inside], starts[inside], texts.rows)
            ids = np.cumsum(is_new) - 1
            small_keys = known * len(self._characters) < 2**32
            known = int(is_new.sum())
            found, row = ids[is_first], pool_of[texts.rows[starts[is_first]]]
            counts = np.stack([np.bincount(found[row == pool], minlength=known) for pool in range(len(pools))])
            _add(gains, starts[is_first] + n - 1, counts[:, found])
            # Smaller numbers make the cache smaller and searches faster.
            counts = counts.astype(np.int16 if self._sizes.max() < 2**15 else np.int32)
            self._levels.append(_Level(keys[is_new].astype(np.uint32 if small_keys else np.int64), counts))
        best = _fluency(texts, gains, np.ones(len(pools)))
        # The benchmark adds one value after another. np.sum adds in another order, and rounds differently.
        sums = [np.cumsum(fluency[pool_of == pool])[-1] for pool, fluency in enumerate(best)]
        self._baselines = np.array(sums) / self._sizes

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, for a cache."""
        arrays = {"sizes": self._sizes, "characters": self._characters, "baselines": self._baselines}
        for n, level in enumerate(self._levels, 1):
            arrays |= {f"keys_{n}": level.keys, f"counts_{n}": level.counts}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> NgramScorer:
        """Return the scorer with the arrays that `arrays` returned."""
        scorer = cls.__new__(cls)
        scorer._sizes, scorer._characters, scorer._baselines = (
            arrays[name] for name in ("sizes", "characters", "baselines")
        )
        scorer._levels = [_Level(arrays[f"keys_{n}"], arrays[f"counts_{n}"]) for n in range(1, LONGEST_NGRAM + 1)]
        return scorer

    def score(self, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return fluency and truthfulness of answers, each [answers, pools] float64."""
        batches = [self._score(answers[i : i + _BATCH]) for i in range(0, len(answers), _BATCH)]
        empty = np.zeros((0, len(self._sizes)))
        fluency, truthfulness = zip((empty, empty), *batches, strict=True)
        return np.concatenate(fluency), np.concatenate(truthfulness)

    def _score(self, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        texts = _Texts.of(answers, READ + 2)
        numbers = self._numbers(texts)
        gains = np.zeros((len(self._sizes), len(numbers)))
        support = np.zeros((len(self._sizes), len(numbers)))
        starts, ids = np.arange(len(numbers)), np.zeros(len(numbers), np.int64)
        for n, level in enumerate(self._levels, 1):
            starts, keys = self._extend(starts, ids, numbers, n)
            if not len(level.keys):  # All references are shorter.
                break
            keys = keys.astype(level.keys.dtype)
            ids = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            known = level.keys[ids] == keys
            starts, ids = starts[known], ids[known]
            inside = _inside(texts, starts, n)
            found, at, _, is_first = _sort(ids[inside], starts[inside], texts.rows)
            _add(gains, at[is_first] + n - 1, level.counts[:, found[is_first]])
            if n == SUPPORT_NGRAM:
                for offset in range(n):
                    support[:, starts + offset] = np.maximum(support[:, starts + offset], level.counts[:, ids])
        return _fluency(texts, gains, self._baselines).T, self._truthfulness(texts, support).T

    def _truthfulness(self, texts: _Texts, support: np.ndarray) -> np.ndarray:
        """Return [pools, answers]: the best discounted mean of the characters' support."""
        counted = ~np.isin(texts.points, [-1, *map(ord, _IGNORED)])
        shape = (len(texts.lengths), READ + 2)
        rows, columns = texts.rows[counted], texts.columns[counted]
        factors = discount(columns)
        number = np.zeros(shape, np.int64)
        number[rows, columns] = 1
        number = np.cumsum(number, axis=1)
        last = number[rows, columns] == number[rows, -1]
        best = np.zeros((len(self._sizes), len(texts.lengths)))
        for p, size in enumerate(self._sizes):
            values = np.zeros(shape)
            values[rows, columns] = np.minimum(1.0, support[p, counted] / size * 200.0)
            scores = np.cumsum(values, axis=1)[rows, columns] / number[rows, columns] * factors
            kept = last | (columns >= FREE)
            np.maximum.at(best[p], rows[kept], scores[kept])
        return best

    def _numbers(self, texts: _Texts) -> np.ndarray:
        """Return the index of each character among those of the references, or -1."""
        found = np.minimum(np.searchsorted(self._characters, texts.points), len(self._characters) - 1)
        return np.where(self._characters[found] == texts.points, found, -1)

    def _extend(
        self, starts: np.ndarray, ids: np.ndarray, numbers: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts and the keys of the n-grams that continue (n - 1)-grams, without those with an unknown character."""
        # A known (n - 1)-gram does not reach the last place, which has an unknown character.
        numbers = numbers[starts + n - 1]
        return starts[numbers >= 0], (ids * len(self._characters) + numbers)[numbers >= 0]


def _inside(texts: _Texts, starts: np.ndarray, n: int) -> np.ndarray:
    """Return whether the n-grams at these places have neither the first nor the last character of their text."""
    columns = texts.columns[starts]
    return (columns > 0) & (columns + n < texts.lengths[texts.rows[starts]])


def _sort(
    keys: np.ndarray, starts: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort n-grams by key and start.

    Returns:
        Keys, starts, whether the key differs from the one before, and whether the n-gram is the first with its key in its text.
    """
    keys, starts = np.divmod(np.sort(keys * len(rows) + starts), len(rows))
    is_new = np.diff(keys, prepend=-1) != 0
    return keys, starts, is_new, is_new | (np.diff(rows[starts], prepend=-1) != 0)


def _add(gains: np.ndarray, places: np.ndarray, counts: np.ndarray) -> None:
    """Add counts [pools, n] to gains [pools, total] at places [n], which may repeat. The sums are whole numbers, so they are exact."""
    for row, values in zip(gains, counts, strict=True):
        row += np.bincount(places, values, len(row))


def _fluency(texts: _Texts, gains: np.ndarray, baselines: np.ndarray) -> np.ndarray:
    """Return [pools, texts]: the best discounted sum of the gains up to a character, divided by the baseline of the pool."""
    first = np.flatnonzero(texts.columns == 0)
    read = (texts.columns > 0) & (texts.columns <= np.minimum(texts.lengths - 2, READ)[texts.rows])
    factors = discount(texts.columns)
    best = []
    for row, baseline in zip(gains, baselines, strict=True):
        sums = np.cumsum(row)
        sums -= (sums[first] - row[first])[texts.rows]
        best.append(np.maximum.reduceat(np.where(read, sums * factors / baseline, 0.0), first))
    return np.stack(best)
