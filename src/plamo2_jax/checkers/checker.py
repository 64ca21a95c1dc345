"""The parts of a checker: its parameters and its wordings."""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Callable, Mapping
from typing import Any, Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import shown

Language = Literal["ja", "en"]
Split = Literal["train", "test"]
LONGEST_TEXT = 1 << 18
"""Number of characters that a checker reads. The rest of a longer text is ignored, so that a check takes bounded time. 32,768 tokens of
five characters each are well below."""


class CheckerError(PlamoError):
    """A checker is unknown, or a parameter is missing, unknown or not allowed."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a checker. Its values are JSON values."""

    allowed: str
    """End of the sentence "it must be ..."."""
    fits: Callable[[Any], bool]
    draw: Callable[[random.Random, Language], Any]
    """Draws a value for synthetic data."""
    words: Callable[[Any, Language], str] = lambda value, language: str(value)
    """Writes a value in an instruction."""
    optional: bool = False
    """An optional parameter is not drawn, and no wording mentions it."""


@dataclasses.dataclass(frozen=True)
class Wordings:
    """Sentences that ask for the same thing in one language. `{name}` stands for a parameter."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        return self.train if split == "train" else self.test


@dataclasses.dataclass(frozen=True)
class Checker:
    """A program that decides whether a text follows an instruction."""

    name: str
    summary: str
    """One line for the table in the documentation: the condition that a text must meet."""
    function: Callable[..., bool]
    """Takes the text and the parameters by name. It depends on nothing else, raises nothing, and takes time linear in the text."""
    parameters: Mapping[str, Parameter]
    wordings: Mapping[Language, Wordings]
    """By language of the instruction. A checker of Japanese script has Japanese wordings only, one of capital letters English only."""
    consistent: Callable[[Mapping[str, Any]], str | None] = lambda parameters: None
    """Returns the problem if allowed values do not go together, for instance a least value above the most."""

    def validate(self, parameters: Mapping[str, Any], where: str = "checker") -> dict[str, Any]:
        """Check parameters, and return a copy.

        Raises:
            CheckerError: a parameter is missing, unknown or not allowed. The message names it.
        """
        if not isinstance(parameters, Mapping):
            raise CheckerError(
                f"{where} {self.name}: the parameters must be an object, not {type(parameters).__name__}"
            )
        for name in parameters:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise CheckerError(f"{where} {self.name}: the parameter {shown(name)} is unknown: it has {known}")
        for name, parameter in self.parameters.items():
            if name not in parameters:
                if not parameter.optional:
                    raise CheckerError(
                        f"{where} {self.name}: the parameter {name} is missing: it is {parameter.allowed}"
                    )
            elif not parameter.fits(parameters[name]):
                value = shown(parameters[name])
                raise CheckerError(
                    f"{where} {self.name}: {name}={value} is not allowed: it must be {parameter.allowed}"
                )
        problem = self.consistent(parameters)
        if problem is not None:
            raise CheckerError(f"{where} {self.name}: {problem}")
        return dict(parameters)

    def check(self, text: str, parameters: Mapping[str, Any]) -> bool:
        """Return whether a text passes. The parameters must have passed `validate`."""
        return bool(self.function(text[:LONGEST_TEXT], **parameters))

    def mentioned(self) -> list[str]:
        """Return the names of the parameters that every wording mentions."""
        return [name for name, parameter in self.parameters.items() if not parameter.optional]


def fields(wording: str) -> list[str]:
    """Return the names of the parameters that a wording mentions."""
    return [name for _, name, _, _ in string.Formatter().parse(wording) if name is not None]


def plain(
    name: str,
    summary: str,
    function: Callable[..., bool],
    ja: tuple[str, ...] = (),
    en: tuple[str, ...] = (),
) -> Checker:
    """Return a checker without parameters. The last wording of each language is the one for tests."""
    wordings: dict[Language, Wordings] = {}
    for language, texts in (("ja", ja), ("en", en)):
        if texts:
            wordings[language] = Wordings(texts[:-1], texts[-1:])
    return Checker(name, summary, function, {}, wordings)
