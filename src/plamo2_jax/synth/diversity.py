"""Diversity of records, and gates that stop a run whose records collapse to a few texts.

The measures are taken on a sample: the records with the smallest hashes of their ids. So they depend neither on the order of the records
nor on the number of workers, and the samples of several workers can be merged. Sizes of samples are fixed, because all these measures
change with the amount of text.

    distinct-n          distinct character n-grams / all n-grams (Li et al., arXiv:1510.03055), of at most 200,000 characters
    self-similarity     mean over texts of the largest Jaccard similarity to another text of the sample, estimated by MinHash
    compression ratio   size in UTF-8 / size after deflate (Shaib et al., arXiv:2403.00553)
    top opening         share of the most common first 20 characters of an answer
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from plamo2_jax.data.minhash import DedupConfig, Signer, squeeze
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.stage import answers_of, text_of
from plamo2_jax.synth.steps import compression_ratio
from plamo2_jax.validation import require

SAMPLE = 1000
"""Number of records in the sample."""
OPENING = 20
"""Number of characters of an opening."""
_LONGEST = 2000
"""Number of characters of a text in the sample."""
_DISTINCT = 200_000
"""Number of characters for distinct-n."""
_ROWS = 64
"""Number of texts that are compared with the sample at once: 8 MiB."""


class CollapseError(PlamoError):
    """Records are less diverse than the gates allow."""


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Limits of diversity. Recipes that fill templates need other limits than recipes with a model."""

    min_records: int = 200
    """Number of records from which the limits apply."""
    min_distinct_4: float = 0.1
    """Smallest allowed distinct-4."""
    max_self_similarity: float = 0.5
    """Largest allowed self-similarity."""
    max_compression_ratio: float = 8.0
    """Largest allowed compression ratio."""
    max_top_opening: float = 0.2
    """Largest allowed share of the most common opening."""

    def __post_init__(self) -> None:
        require(self, "min_records", self.min_records >= 1, "at least 1")
        for name in ("min_distinct_4", "max_self_similarity", "max_top_opening"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "max_compression_ratio", self.max_compression_ratio >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Measures of diversity."""

    records: int
    characters: int
    distinct: Mapping[int, float]
    """By n, from 1 to 4; 1 without text."""
    self_similarity: float
    compression_ratio: float
    top_opening: str
    top_opening_share: float
    lengths: Mapping[int, int]
    """Number of records by number of characters, rounded up to a power of two."""

    def to_json(self) -> dict[str, Any]:
        """Return the measures as JSON, rounded to 4 digits."""
        return {
            "records": self.records,
            "characters": self.characters,
            "distinct": {str(n): round(share, 4) for n, share in self.distinct.items()},
            "self_similarity": round(self.self_similarity, 4),
            "compression_ratio": round(self.compression_ratio, 4),
            "top_opening": {"text": self.top_opening, "share": round(self.top_opening_share, 4)},
            "lengths": {str(length): count for length, count in self.lengths.items()},
        }


class DiversityMeter:
    """Collects a sample of records. Memory: at most 1,000 texts of 2,000 characters."""

    def __init__(self) -> None:
        self.records = self.characters = 0
        self.lengths: collections.Counter[int] = collections.Counter()
        # A heap with the largest hash first: (-hash, text, opening).
        self._sample: list[tuple[int, str, str]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record with an id."""
        text = text_of(record)
        self.records += 1
        self.characters += len(text)
        self.lengths[1 << max(0, len(text) - 1).bit_length()] += 1
        id = str(record["id"]).encode("utf-8", "surrogatepass")
        rank = int.from_bytes(hashlib.blake2b(id, digest_size=8).digest(), "big")
        if len(self._sample) < SAMPLE or -rank > self._sample[0][0]:
            self._push((-rank, text[:_LONGEST], answers_of(record).lstrip()[:OPENING]))

    def merge(self, other: DiversityMeter) -> None:
        """Add the records of another meter."""
        self.records += other.records
        self.characters += other.characters
        self.lengths += other.lengths
        for entry in other._sample:
            self._push(entry)

    def measure(self) -> Diversity:
        """Return the measures of the records so far. It takes about 1 s."""
        sample = sorted(self._sample, reverse=True)
        texts = [text for _, text, _ in sample]
        openings = collections.Counter(opening for _, _, opening in sample)
        # Of openings that are equally common, the first by name, so that the result is the same in any order.
        top = min(openings, key=lambda opening: (-openings[opening], opening), default="")
        return Diversity(
            self.records,
            self.characters,
            distinct_shares(texts),
            self_similarity(texts),
            compression_ratio(texts),
            top,
            openings[top] / len(sample) if sample else 0.0,
            dict(sorted(self.lengths.items())),
        )

    def _push(self, entry: tuple[int, str, str]) -> None:
        if len(self._sample) < SAMPLE:
            heapq.heappush(self._sample, entry)
        else:
            heapq.heappushpop(self._sample, entry)


def problems(diversity: Diversity, config: GateConfig, where: str) -> list[str]:
    """Return a sentence for each limit that the records exceed; empty with fewer records than `min_records`.

    Args:
        diversity: measures.
        config: limits.
        where: description of the records for messages, such as "recipe rephrase_ja".
    """
    if diversity.records < config.min_records:
        return []
    found = []
    if diversity.distinct[4] < config.min_distinct_4:
        found.append(f"distinct-4 is {diversity.distinct[4]:.3f}: it must be at least {config.min_distinct_4:g}")
    for name in ("self_similarity", "compression_ratio"):
        value, most = getattr(diversity, name), getattr(config, f"max_{name}")
        if value > most:
            found.append(f"the {name.replace('_', ' ')} is {value:.3f}: it must be at most {most:g}")
    if diversity.top_opening_share > config.max_top_opening:
        found.append(
            f"{diversity.top_opening_share:.1%} of the answers begin with {diversity.top_opening!r}: at most "
            f"{config.max_top_opening:.1%} may have the same beginning"
        )
    return [f"{where}: {one}" for one in found]


def check(diversity: Diversity, config: GateConfig, where: str) -> None:
    """Raise an error if records collapse.

    Raises:
        CollapseError: a limit is exceeded. The message names all such limits.
    """
    found = problems(diversity, config, where)
    if found:
        raise CollapseError(f"{'; '.join(found)}. Vary the seeds or the prompts of the recipe, or change the gates")


def distinct_shares(texts: Iterable[str]) -> dict[int, float]:
    """Return distinct-n for n = 1 to 4, of the first 200,000 characters without white space. N-grams lie within one text."""
    seen: dict[int, set[str]] = {n: set() for n in range(1, 5)}
    counts = dict.fromkeys(seen, 0)
    characters = 0
    for text in texts:
        text = squeeze(text)[: _DISTINCT - characters]
        characters += len(text)
        for n, found in seen.items():
            found.update(text[i : i + n] for i in range(len(text) - n + 1))
            counts[n] += max(0, len(text) - n + 1)
    return {n: len(found) / counts[n] if counts[n] else 1.0 for n, found in seen.items()}


def self_similarity(texts: Iterable[str]) -> float:
    """Return the mean over texts of the largest similarity to another one; 0 with fewer than two texts."""
    signer = Signer(DedupConfig())
    signatures = [signer(text)[1] for text in texts]
    if len(signatures) < 2:
        return 0.0
    rows = np.stack(signatures)
    largest = []
    for start in range(0, len(rows), _ROWS):
        shares = np.mean(rows[start : start + _ROWS, None] == rows[None], axis=2)
        shares[np.arange(len(shares)), start + np.arange(len(shares))] = 0.0
        largest.append(shares.max(axis=1))
    return float(np.mean(np.concatenate(largest)))
