"""Cloze questions from the held-out pages of the bundled corpus: which of four words of the same form stands in a gap?

The questions are built by this program, so no data of a benchmark is needed. A model of a few million parameters is above chance.
"""

from __future__ import annotations

import collections
import functools
import re

import numpy as np

from plamo2_jax.data.corpus import documents

CHOICES = 4
_WORD = {
    "en": re.compile(r"(?<![A-Za-z])[a-z]{5,10}(?![A-Za-z])"),
    "ja": re.compile(r"(?<![一-龥])[一-龥]{2}(?![一-龥])|(?<![ァ-ヴー])[ァ-ヴー]{3,8}(?![ァ-ヴー])"),
}
_BEFORE, _LEAST_BEFORE, _AFTER = 240, 60, 40
"""Largest and smallest number of characters before the gap, and largest number after it."""
_COMMON = 5
"""Smallest number of occurrences of a word in the training pages."""


@functools.cache
def questions(language: str) -> tuple[dict, ...]:
    """Return the questions of a language, one for each held-out page that has one.

    A word of a sentence is replaced by a gap. The wrong words occur in the training pages about as often as the right one, and not in the
    text of the question. They have the same script, and for English and katakana about the same length.

    Returns:
        Objects with id, context (the text before the gap), after (the rest of the sentence), choices, answer (index), source and license.
    """
    counts = collections.Counter(
        word for document in documents(language, "train") for word in _WORD[language].findall(document["text"])
    )
    common = [word for word in sorted(counts) if counts[word] >= _COMMON]
    found = []
    for number, document in enumerate(documents(language, "heldout")):
        rng = np.random.default_rng([number, len(language)])
        gaps = [
            match
            for match in _WORD[language].finditer(document["text"])
            if match.start() >= _LEAST_BEFORE and counts[match.group()] >= _COMMON
        ]
        if not gaps:
            continue
        gap = gaps[rng.integers(len(gaps))]
        context = document["text"][max(0, gap.start() - _BEFORE) : gap.start()]
        after = re.split(r"(?<=[。.!?！？])|\n", document["text"][gap.end() : gap.end() + _AFTER], maxsplit=1)[0]
        others = _others(gap.group(), common, counts, context + after, rng)
        if len(others) < CHOICES - 1:
            continue
        answer = int(rng.integers(CHOICES))
        choices = [*others[:answer], gap.group(), *others[answer:]]
        fields = {"source": document["source"], "license": document["license"]}
        found.append(
            {"id": document["id"], "context": context, "after": after, "choices": choices, "answer": answer, **fields}
        )
    return tuple(found)


def _others(
    word: str, common: list[str], counts: collections.Counter[str], text: str, rng: np.random.Generator
) -> list[str]:
    """Return wrong words, drawn from the thirty whose frequency is closest to that of the right one."""

    def same_form(other: str) -> bool:
        kanji = "一" <= word[0] <= "龥", "一" <= other[0] <= "龥"
        return kanji[0] == kanji[1] and abs(len(other) - len(word)) <= 1 and other != word and other not in text

    close = sorted(
        filter(same_form, common), key=lambda other: (abs(np.log(counts[other] / counts[word])), other)
    )[:30]  # fmt: skip
    return [close[i] for i in rng.permutation(len(close))[: CHOICES - 1]]
