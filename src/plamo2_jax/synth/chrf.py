"""chrF: similarity of two texts by their character n-grams (Popović 2015, https://aclanthology.org/W15-3049)."""

from __future__ import annotations

import collections

ORDER = 6
"""Largest length of an n-gram in characters."""
BETA = 2.0
"""Weight of recall relative to precision."""
_LONGEST = 1 << 16


def chrf(hypothesis: str, reference: str) -> float:
    """Return the chrF2 score of a text, from 0 to 1. White space does not count. Orders longer than either text are left out.

    Args:
        hypothesis: the scored text. Only its first 65,536 characters are read.
        reference: the text that it is compared with, read to the same length.
    """
    texts = ["".join(text[:_LONGEST].split()) for text in (hypothesis, reference)]
    precisions, recalls = [], []
    for n in range(1, min(ORDER, *map(len, texts)) + 1):
        found, wanted = (collections.Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts)
        shared = (found & wanted).total()
        precisions.append(shared / found.total())
        recalls.append(shared / wanted.total())
    if not precisions:
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if precision + recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
