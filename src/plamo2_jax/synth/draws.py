"""Random values of a recipe: one of a list, several of a list, a whole number, or instructions with checkers.

draw:
style: [simple, formal]                          # one of a list
topics: {of: [tea, rice, trains], count: 2}      # several different ones
pairs: {least: 1, most: 5}                       # a whole number
constraints:                                     # instructions with the training wordings of `plamo2_jax.checkers`
checkers: [[characters, sentences_ja], [bullets]]
least: 1
most: 2
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from plamo2_jax import checkers
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import shown

_SEEDS = 1 << 31


class Draw(Protocol):
    """A random value."""

    def __call__(self, random: np.random.Generator) -> Any:
        """Return a value, as JSON."""
        ...


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One value of a list."""

    values: tuple[Any, ...]

    def __call__(self, random: np.random.Generator) -> Any:
        return self.values[int(random.integers(len(self.values)))]


@dataclasses.dataclass(frozen=True)
class Several:
    """Different values of a list, in random order."""

    values: tuple[Any, ...]
    count: int

    def __call__(self, random: np.random.Generator) -> list[Any]:
        return [self.values[int(i)] for i in random.permutation(len(self.values))[: self.count]]


@dataclasses.dataclass(frozen=True)
class WholeNumber:
    """A whole number between two bounds, both included."""

    least: int
    most: int

    def __call__(self, random: np.random.Generator) -> int:
        return int(random.integers(self.least, self.most + 1))


@dataclasses.dataclass(frozen=True)
class Constraints:
    """Instructions that a checker can check, in the training wordings. At most one checker of each group is drawn.

    The values are dicts with `name`, `parameters` and `instruction`.
    """

    groups: tuple[tuple[str, ...], ...]
    least: int
    most: int
    language: str

    def __call__(self, random: np.random.Generator) -> list[dict[str, Any]]:
        count = int(random.integers(self.least, self.most + 1))
        drawn = []
        for i in sorted(random.permutation(len(self.groups))[:count]):
            name = self.groups[i][int(random.integers(len(self.groups[i])))]
            parameters = checkers.draw(name, self.language, int(random.integers(_SEEDS)))
            words = checkers.instruction(name, parameters, self.language, "train", int(random.integers(_SEEDS)))
            drawn.append({"name": name, "parameters": parameters, "instruction": words})
        return drawn

    def wordings(self) -> list[str]:
        """Return the wordings that may be drawn, for the hash of the recipe."""
        names = sorted({name for group in self.groups for name in group})
        return [text for name in names for text in checkers.find(name).wordings[self.language].train]


def read_draw(given: Any, language: str, where: str) -> Draw:
    """Return the draw that a recipe file describes.

    Raises:
        PlamoError: the description has another form, a bound is out of range, or a checker is unknown or has no wordings in `language`.
    """
    if isinstance(given, list) and given:
        return OneOf(tuple(given))
    keys = set(given) if isinstance(given, Mapping) else None
    if keys == {"of", "count"}:
        fits = isinstance(given["of"], list) and _whole(given["count"]) and 1 <= given["count"] <= len(given["of"])
        if not fits:
            raise PlamoError(
                f"{where}: count={shown(given['count'])} is not allowed: it must be from 1 to the length of the list"
            )
        return Several(tuple(given["of"]), given["count"])
    if keys == {"least", "most"}:
        _bounds(given, 0, where)
        return WholeNumber(given["least"], given["most"])
    if keys == {"checkers", "least", "most"}:
        _bounds(given, 1, where)
        groups = given["checkers"]
        if not (isinstance(groups, list) and groups and all(isinstance(group, list) and group for group in groups)):
            raise PlamoError(f"{where}: checkers={shown(groups)} is not allowed: it must be a list of lists of names")
        for name in [name for group in groups for name in group]:
            if language not in checkers.find(name).wordings:
                raise PlamoError(f"{where}: the checker {name} has no wordings for {shown(language)}. Remove it")
        if given["most"] > len(groups):
            raise PlamoError(
                f"{where}: most={given['most']} is not allowed: there are {len(groups)} groups of checkers"
            )
        return Constraints(tuple(map(tuple, groups)), given["least"], given["most"], language)
    raise PlamoError(
        f"{where}={shown(given)} is not allowed: it must be a list, or have the keys least and most, of and count, or checkers, least "
        "and most"
    )


def _bounds(given: Mapping[str, Any], lowest: int, where: str) -> None:
    least, most = given["least"], given["most"]
    if not (_whole(least) and _whole(most) and lowest <= least <= most):
        raise PlamoError(
            f"{where}: least={shown(least)}, most={shown(most)} is not allowed: both must be whole numbers of at least {lowest}, in order"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
