"""Pairs out of scored answers: which answers to one prompt stand against each other."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from plamo2_jax.data.dedup import fingerprint, shingle_hashes
from plamo2_jax.validation import require

Choose = Literal["best_worst", "all", "balanced"]
_NGRAM = 5


@dataclasses.dataclass(frozen=True)
class PairingConfig:
    """Which pairs are made.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    choose: Choose = "best_worst"
    """best_worst: the best answer against the worst. all: every pair whose margin is wide enough. balanced: of these the one a prompt
    that keeps chosen and rejected answers equally long over the whole file."""
    margin: float = 0.1
    """Least difference of the two scores, which lie in [0, 1]."""
    length_ratio: float | None = None
    """The longer answer of a pair has at most so many times the characters of the shorter; none: any."""
    near_answers: float | None = 0.9
    """Jaccard similarity of character 5-grams from which an answer repeats an earlier one to the same prompt, and is left out; none: only
    answers that differ in white space alone are."""

    def __post_init__(self) -> None:
        require(self, "choose", self.choose in get_args(Choose), f"one of {', '.join(get_args(Choose))}")
        require(self, "margin", 0 < self.margin <= 1, "above 0 and at most 1")
        ratio = self.length_ratio
        require(self, "length_ratio", ratio is None or 1 <= ratio < math.inf, "at least 1 and finite, or none")
        near = self.near_answers
        require(self, "near_answers", near is None or 0 < near <= 1, "above 0 and at most 1, or none")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One answer to a prompt."""

    sample: int
    text: str
    score: float


class Pairing:
    """Makes pairs prompt after prompt; remembers how much longer the chosen answers were."""

    def __init__(self, config: PairingConfig):
        self._config = config
        self._surplus = 0
        """Characters of chosen answers less those of rejected ones."""

    def pairs(self, candidates: Sequence[Candidate]) -> tuple[list[tuple[Candidate, Candidate]], str]:
        """Pairs of chosen and rejected, and where there are none why: "one answer", "margin" or "length"."""
        if len(candidates) < 2:
            return [], "one answer"
        # Of equal scores the earlier sample stands first, whatever order they come in.
        ranked = sorted(candidates, key=lambda one: (-one.score, one.sample))
        ordered = list(itertools.combinations(ranked, 2))
        if self._config.choose == "best_worst":
            ordered = [(ranked[0], ranked[-1])]
        # Scores are sums of decimal fractions.
        wide = [pair for pair in ordered if pair[0].score - pair[1].score >= self._config.margin - 1e-9]
        if not wide:
            return [], "margin"
        found = [pair for pair in wide if self._fits(*pair)]
        if not found:
            return [], "length"
        if self._config.choose == "balanced":
            found = [min(found, key=lambda pair: abs(self._surplus + _excess(*pair)))]
        self._surplus += sum(_excess(*pair) for pair in found)
        return found, ""

    def _fits(self, chosen: Candidate, rejected: Candidate) -> bool:
        ratio = self._config.length_ratio
        short, long = sorted((len(chosen.text), len(rejected.text)))
        return ratio is None or long <= ratio * short


def repeated(texts: Sequence[str], threshold: float | None) -> list[int | None]:
    """For each answer the number of the first earlier one that it repeats, or None.

    Args:
        texts: answers to one prompt.
        threshold: Jaccard similarity from which an answer repeats another; None: only white space may differ.
    """
    prints = [fingerprint(text) for text in texts]
    shingles = [shingle_hashes(text, _NGRAM) for text in texts]
    found: list[int | None] = []
    for i in range(len(texts)):
        # What repeats an answer that is left out is compared with the one that stays.
        kept = [j for j in range(i) if found[j] is None]
        same = (j for j in kept if prints[i] == prints[j] or _alike(shingles[i], shingles[j], threshold))
        found.append(next(same, None))
    return found


def _alike(a: np.ndarray, b: np.ndarray, threshold: float | None) -> bool:
    if threshold is None or not (len(a) and len(b)):
        return False
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common) >= threshold


def _excess(chosen: Candidate, rejected: Candidate) -> int:
    return len(chosen.text) - len(rejected.text)
