"""Variable tracking: a chain of assignments is hidden in a context, and the question is which variables have a value (RULER's vt)."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable

import numpy as np

from plamo2_jax.eval.ruler.case import Case, fit
from plamo2_jax.eval.ruler.wording import WORDINGS

_HOPS = 4
_NEW_TOKENS = 30
_EXAMPLE_TOKENS = 500


def chain_case(kind: str, language: str, seed: list[int], length: int, count: Callable[[str], int]) -> Case:
    """Return a question about a chain of five variables, behind an example with shorter names.

    The example has at most 500 tokens, and at most a quarter of `length`.
    """
    rng = np.random.default_rng(seed)
    example = _chain(kind, language, rng, 3)
    text = fit(example, max(min(_EXAMPLE_TOKENS, length // 4), _least(example, count)), count)
    shown = f"{text}{example.prefix}{' '.join(example.references)}\n\n"
    case = _chain(kind, language, rng, 5)
    return Case(
        kind, case.question, case.prefix, case.references, lambda size: shown + case.prompt(size), _NEW_TOKENS, case.least
    )  # fmt: skip


def _least(example: Case, count: Callable[[str], int]) -> int:
    return count(example.prompt(example.least) + example.prefix)


def _chain(kind: str, language: str, rng: np.random.Generator, letters: int) -> Case:
    wording, variables = WORDINGS[language], []
    while len(variables) < _HOPS + 1:
        name = "".join(string.ascii_uppercase[i] for i in rng.integers(26, size=letters))
        variables += [name] if name not in variables else []
    value = str(rng.integers(10000, 99999))
    lines = [f"VAR {variables[0]} = {value}"]
    lines += [f"VAR {after} = VAR {before} " for before, after in itertools.pairwise(variables)]
    places = np.sort(rng.random(len(lines)))
    question, prefix = (
        text.replace("{query}", value).replace("{count}", str(len(variables))) for text in wording.variables
    )

    def prompt(size: int) -> str:
        parts, done = [], 0
        for place, line in zip((places * size).astype(int), lines, strict=True):
            parts += [wording.noise] * (place - done) + [line]
            done = place
        return question.replace("{context}", "\n".join([*parts, *[wording.noise] * (size - done)]))

    # The answer of the example is part of the prompt, so its tokens do not count as generated.
    return Case(kind, question.rpartition("\n")[2], prefix, tuple(variables), prompt, 0)
