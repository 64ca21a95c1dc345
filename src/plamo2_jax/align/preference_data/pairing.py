"""Selection of pairs from the scored answers to a prompt."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from plamo2_jax.data.minhash import fingerprint, shingle_hashes
from plamo2_jax.validation import require

Choose = Literal["best_worst", "all", "balanced"]
_NGRAM = 5


@dataclasses.dataclass(frozen=True)
class PairingConfig:
    """Selection of pairs from the scored answers. A field that is out of range raises PlamoError."""

    choose: Choose = "best_worst"
    """best_worst: the best and the worst answer. all: every pair with a sufficient margin. balanced: one of these pairs per prompt, chosen
    to keep the mean lengths of chosen and rejected answers equal."""
    margin: float = 0.1
    """Minimum difference of the scores of the two answers. Scores are in [0, 1]."""
    length_ratio: float | None = None
    """Largest ratio of the lengths of the two answers in characters; none: no limit."""
    near_answers: float | None = 0.9
    """Omit an answer if its Jaccard similarity of character 5-grams to an earlier answer to the same prompt is at least this; none: omit
    only answers that differ in white space alone."""

    def __post_init__(self) -> None:
        require(self, "choose", self.choose in get_args(Choose), f"one of {', '.join(get_args(Choose))}")
        require(self, "margin", 0 < self.margin <= 1, "above 0 and at most 1")
        ratio = self.length_ratio
        require(self, "length_ratio", ratio is None or 1 <= ratio < math.inf, "at least 1 and finite, or none")
        near = self.near_answers
        require(self, "near_answers", near is None or 0 < near <= 1, "above 0 and at most 1, or none")


Answer = Mapping[str, Any]
"""An answer of the journal, with `sample` (number), `text` and `score`."""


class Pairing:
    """Selects the pairs of one prompt after another. It counts how much longer the chosen answers are, for `balanced`."""

    def __init__(self, config: PairingConfig):
        self._config = config
        self._surplus = 0
        """Characters of all chosen answers minus characters of all rejected answers."""

    def pairs(self, candidates: Sequence[Answer]) -> tuple[list[tuple[Answer, Answer]], str]:
        """Return pairs of a chosen and a rejected answer; without pairs also the reason: "one answer", "margin" or "length"."""
        if len(candidates) < 2:
            return [], "one answer"
        # For equal scores the lower sample number comes first, in any order of the candidates.
        ranked = sorted(candidates, key=lambda one: (-one["score"], one["sample"]))
        ordered = list(itertools.combinations(ranked, 2))
        if self._config.choose == "best_worst":
            ordered = [(ranked[0], ranked[-1])]
        # Scores are sums of decimal fractions, so differences have rounding errors.
        wide = [(a, b) for a, b in ordered if a["score"] - b["score"] >= self._config.margin - 1e-9]
        if not wide:
            return [], "margin"
        found = [pair for pair in wide if self._fits(*pair)]
        if not found:
            return [], "length"
        if self._config.choose == "balanced":
            found = [min(found, key=lambda pair: abs(self._surplus + _excess(*pair)))]
        self._surplus += sum(_excess(*pair) for pair in found)
        return found, ""

    def _fits(self, chosen: Answer, rejected: Answer) -> bool:
        ratio = self._config.length_ratio
        short, long = sorted((len(chosen["text"]), len(rejected["text"])))
        return ratio is None or long <= ratio * short


def repeated(texts: Sequence[str], threshold: float | None) -> list[int | None]:
    """Return, for each answer to a prompt, the index of the first earlier answer that it repeats, or None.

    Args:
        texts: the answers.
        threshold: Jaccard similarity from which an answer repeats another; None: only white space may differ.
    """
    prints = [fingerprint(text) for text in texts]
    shingles = [shingle_hashes(text, _NGRAM) for text in texts]
    found: list[int | None] = []
    for i in range(len(texts)):
        # Compare with answers that are kept only.
        kept = [j for j in range(i) if found[j] is None]
        same = (j for j in kept if prints[i] == prints[j] or _alike(shingles[i], shingles[j], threshold))
        found.append(next(same, None))
    return found


def _alike(a: np.ndarray, b: np.ndarray, threshold: float | None) -> bool:
    if threshold is None or not (len(a) and len(b)):
        return False
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common) >= threshold


def _excess(chosen: Answer, rejected: Answer) -> int:
    return len(chosen["text"]) - len(rejected["text"])
