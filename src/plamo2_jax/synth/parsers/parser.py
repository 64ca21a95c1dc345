"""The interface of parsers, and the checks of their parameters."""

from __future__ import annotations

from typing import Any, Protocol

from plamo2_jax.synth.record import Refusal
from plamo2_jax.validation import require

LONGEST = 1 << 18
"""Largest number of characters of an answer. Longer answers are refused."""


class Parser(Protocol):
    """A parser with its parameters."""

    def __call__(self, text: str) -> Any | Refusal:
        """Return the value of an answer, or a refusal."""
        ...


def refuse(reason: str) -> Refusal:
    """Return a refusal by a parser."""
    return Refusal(f"parse: {reason}")


def is_number(value: Any) -> bool:
    """Return whether a parameter is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_texts(value: Any) -> bool:
    """Return whether a parameter is a list of texts, none of them blank."""
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)
    )


def require_texts(config: Any, name: str, *, some: bool = False, empty: bool = False) -> None:
    """Check that a parameter is a list of texts.

    Args:
        config: the parser.
        name: the parameter.
        some: refuse an empty list.
        empty: allow empty texts.

    Raises:
        PlamoError: it is not.
    """
    value = getattr(config, name)
    fits = isinstance(value, tuple) and all(isinstance(one, str) and (one or empty) for one in value)
    require(config, name, fits and (value or not some), "a list of texts")


def require_range(config: Any, least: str, most: str | None, lowest: int = 0) -> None:
    """Check that the parameters `least` and `most` (None: there is none) are whole numbers with lowest <= least <= most.

    Raises:
        PlamoError: they are not.
    """
    value = getattr(config, least)
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(config, least, whole and value >= lowest, f"a whole number of at least {lowest}")
    if most is not None:
        largest = getattr(config, most)
        whole = isinstance(largest, int) and not isinstance(largest, bool)
        require(config, most, whole and largest >= value, f"a whole number of at least {least}={value}")
