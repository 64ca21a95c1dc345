"""chrF: similarity of a text and a reference by their character n-grams (Popović 2015).

The definition is the same as in sacrebleu 2 without word n-grams: white space is dropped, precision and recall are averaged over the
lengths 1 to 6 that both texts have, and recall counts twice as much as precision (beta = 2).
"""

from __future__ import annotations

from collections import Counter

ORDER = 6
"""Largest length of an n-gram."""
BETA = 2
"""Weight of recall relative to precision."""


def chrf(text: str, reference: str) -> float:
    """Return the chrF score of a text, from 0 to 100. It is 0 if one of the texts is empty."""
    text, reference = "".join(text.split()), "".join(reference.split())
    precision = recall = 0.0
    orders = 0
    for n in range(1, ORDER + 1):
        of_text, of_reference = _ngrams(text, n), _ngrams(reference, n)
        if not of_text or not of_reference:
            break
        shared = (of_text & of_reference).total()
        precision += shared / of_text.total()
        recall += shared / of_reference.total()
        orders += 1
    if precision + recall == 0:
        return 0.0
    precision, recall = precision / orders, recall / orders
    return 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
