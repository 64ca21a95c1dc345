"""A question whose context can have any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.token_budget import largest_size


@dataclasses.dataclass(frozen=True)
class Case:
    """A question about a generated context."""

    kind: str
    question: str
    """The question at the end of the context, without the context."""
    prefix: str
    """Beginning of the answer. The model continues it."""
    references: tuple[str, ...]
    """Strings that a right answer contains."""
    prompt: Callable[[int], str]
    """Maps the size of the context (sentences, words or characters, by kind) to the context with the question, without the prefix."""
    new_tokens: int
    """Largest number of tokens of the answer."""
    least: int = 1
    """Smallest size of the context."""
    most: int | None = None
    """Largest size of the context. None: no limit."""


def fit(case: Case, length: int, count: Callable[[str], int]) -> str:
    """Return the prompt, without prefix, of the largest context that fits.

    Args:
        case: the question.
        length: number of tokens of the prompt, the prefix and the answer together.
        count: returns the number of tokens of a text.

    Raises:
        PlamoError: the smallest context does not fit.
    """

    def tokens(size: int) -> int:
        return count(case.prompt(size) + case.prefix)

    size = largest_size(tokens, length - case.new_tokens, case.least, case.most)
    if size is None:
        used = tokens(case.least)
        raise PlamoError(
            f"--lengths {length} is not allowed for {case.kind}: its smallest prompt has {used} tokens, and its answer needs "
            f"{case.new_tokens}. Use at least {used + case.new_tokens}"
        )
    return case.prompt(size)
