"""Helpfulness of answers: the keywords that an answer reaches before the discount for its length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.pfgen.ngrams import READ, discount
from plamo2_jax.pattern import PatternError, search_ends

_NEVER = 9999
_SPECIAL = frozenset(r"\.^$*+?{}[]|()")
_SECONDS = 30.0


def helpfulness(keywords: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
    """Return the helpfulness of answers.

    It is the largest value over lengths from 0 to 150 characters: the discount of the length, times 1 - importance for each keyword that
    does not end within it. Only 200 characters are read.

    Raises:
        PlamoError: matching a pattern takes too long.
    """
    answers = [answer[:READ] for answer in answers]
    patterns = sorted({pattern for keyword in keywords for pattern in _patterns(keyword)})
    plain = [pattern for pattern in patterns if _SPECIAL.isdisjoint(pattern)]
    others = [pattern for pattern in patterns if not _SPECIAL.isdisjoint(pattern)]
    try:
        found = search_ends(others, answers, _SECONDS)
    except PatternError as error:
        raise PlamoError(f"the keywords cannot be searched: {error}") from None
    scores = []
    for answer, other_ends in zip(answers, found, strict=True):
        ends = {pattern: start + len(pattern) for pattern in plain if (start := answer.find(pattern)) >= 0}
        ends |= {pattern: end for pattern, end in zip(others, other_ends, strict=True) if end is not None}
        values = discount(np.arange(len(answer) + 1))
        values = values[values >= 0]
        for keyword in keywords:
            values[: _end(keyword, ends)] *= 1 - keyword.get("importance", 1.0)
        scores.append(float(values.max()))
    return scores


def _patterns(keyword: Mapping[str, Any]) -> list[str]:
    if "t" in keyword:
        return [keyword["t"]]
    return [pattern for part in keyword.get("and", keyword.get("or")) for pattern in _patterns(part)]


def _end(keyword: Mapping[str, Any], ends: Mapping[str, int]) -> int:
    """Return the number of characters after which a keyword is matched."""
    if "t" in keyword:
        return ends.get(keyword["t"], _NEVER)
    if "and" in keyword:
        return max(_end(part, ends) for part in keyword["and"])
    return min(_end(part, ends) for part in keyword["or"])
