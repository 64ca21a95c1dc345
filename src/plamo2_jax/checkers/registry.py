"""The registry: every checker by name, and what callers do with a name."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from plamo2_jax.checkers import (
    casing,
    documents,
    endings,
    items,
    keywords,
    layout,
    length,
    markdown,
    markup,
    notation,
    repeats,
    scripts,
    sentence_kinds,
)
from plamo2_jax.checkers.checker import Checker, CheckerError, Language, Split
from plamo2_jax.validation import shown

_FAMILIES = (
    length.CHECKERS,
    keywords.CHECKERS,
    scripts.CHECKERS,
    casing.CHECKERS,
    endings.CHECKERS,
    sentence_kinds.CHECKERS,
    items.CHECKERS,
    layout.CHECKERS,
    repeats.CHECKERS,
    documents.CHECKERS,
    notation.CHECKERS,
    markup.CHECKERS,
    markdown.CHECKERS,
)
CHECKERS: Mapping[str, Checker] = {checker.name: checker for family in _FAMILIES for checker in family}
"""All checkers by name."""


def find(name: Any) -> Checker:
    """Return the checker of a name.

    Raises:
        CheckerError: there is none.
    """
    if not isinstance(name, str) or name not in CHECKERS:
        raise CheckerError(f"the checker {shown(name)} is unknown: docs/checkers.md lists the checkers")
    return CHECKERS[name]


def validate(name: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Check the name and the parameters of a checker, and return a copy of the parameters.

    Raises:
        CheckerError: the checker is unknown, or a parameter is missing, unknown or not allowed.
    """
    return find(name).validate(parameters)


def check(name: str, text: str, parameters: Mapping[str, Any] | None = None) -> bool:
    """Return whether a text passes a checker.

    Raises:
        CheckerError: the checker is unknown, or a parameter is missing, unknown or not allowed.
    """
    checker = find(name)
    return checker.check(text, checker.validate({} if parameters is None else parameters))


def draw(name: str, language: Language, seed: int) -> dict[str, Any]:
    """Draw parameters of a checker for synthetic data. The same seed gives the same values.

    Raises:
        CheckerError: the checker is unknown.
    """
    checker = find(name)
    rng = random.Random(f"{name}/{language}/{seed}")
    for _ in range(1000):
        drawn = {name: checker.parameters[name].draw(rng, language) for name in checker.mentioned()}
        if checker.consistent(drawn) is None:
            return checker.validate(drawn)
    raise AssertionError(f"no consistent parameters of {name}")


def instruction(name: str, parameters: Mapping[str, Any], language: Language, split: Split, seed: int) -> str:
    """Write the instruction that a checker checks.

    Args:
        split: `train` for training data and preference data, `test` for evaluation.
        seed: Selects one of the wordings.

    Raises:
        CheckerError: the checker is unknown, has no wordings in this language, or a parameter is not allowed.
    """
    checker = find(name)
    parameters = checker.validate(parameters)
    if language not in checker.wordings:
        raise CheckerError(f"the checker {name} has no wordings for {shown(language)}: {', '.join(checker.wordings)}")
    wording = random.Random(f"{name}/{language}/{split}/{seed}").choice(checker.wordings[language].of(split))
    words = {name: checker.parameters[name].words(value, language) for name, value in parameters.items()}
    return wording.format(**words)
