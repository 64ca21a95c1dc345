"""Needles in a haystack: sentences that assign values to keys, hidden in a long context (RULER's niah tasks)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from plamo2_jax.eval.ruler import words
from plamo2_jax.eval.ruler.case import Case
from plamo2_jax.eval.ruler.wording import WORDINGS, Wording

_DEPTHS = np.round(np.linspace(0, 100, 40)) / 100
_NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Needles:
    """A kind of needle question."""

    haystack: Literal["noise", "text", "needles"]
    """noise: repeated sentences. text: held-out pages of the bundled corpus. needles: other needles, one a line."""
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    needles: int = 1
    """Number of keys in the context."""
    values_per_key: int = 1
    queries: int = 1
    """Number of keys in the question."""

    @property
    def one_answer(self) -> bool:
        """Whether the answer is one value, so that its depth can be chosen."""
        return self.values_per_key * self.queries == 1


KINDS = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("text"),
    "niah_single_3": Needles("text", values="uuids"),
    "niah_multikey_1": Needles("text", needles=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Needles("text", values_per_key=4),
    "niah_multiquery": Needles("text", needles=4, queries=4),
}
"""The kinds with RULER's names and parameters."""


def needle_case(kind: str, language: str, seed: list[int], depth: float) -> Case:
    """Return a question about needles.

    Args:
        kind: a key of `KINDS`.
        language: en or ja.
        seed: random seed.
        depth: position of the needle in question, from 0 (beginning) to 1 (end), for kinds with one answer. Other needles have random
            positions.
    """
    config, wording, rng = KINDS[kind], WORDINGS[language], np.random.default_rng(seed)
    name = wording.numbers if config.values == "numbers" else wording.uuids
    keys = _keys(rng, config, language, config.needles)
    values = [[_value(rng, config) for _ in range(config.values_per_key)] for _ in keys]
    asked = rng.choice(config.needles, config.queries, replace=False)
    positions = rng.choice(_DEPTHS, (config.needles, config.values_per_key), replace=False)
    if config.one_answer:
        positions[asked[0], 0] = depth
    needles = sorted(
        (float(position), wording.needle.format(values=name[1], key=key, value=value))
        for key, row, places in zip(keys, values, positions, strict=True)
        for value, position in zip(row, places, strict=True)
    )
    queries = [keys[i] for i in asked]
    query = wording.comma.join(queries[:-1]) + wording.last + queries[-1] if len(queries) > 1 else queries[0]
    question, prefix = (
        text.replace("{values}", name[1]).replace("{value}", name[0]).replace("{query}", query)
        for text in (wording.one_value if config.one_answer else wording.values)
    )
    filler = [*seed, 1]
    first = int(rng.integers(len(words.corpus_text(language)))) if config.haystack == "text" else 0

    def prompt(size: int) -> str:
        if config.haystack == "text":
            hay = words.sentences(language, _pages(language, first, size))
        elif config.haystack == "noise":
            hay = [wording.noise] * size
        else:
            hay = _other_needles(np.random.default_rng(filler), config, language, wording, name[1], set(keys), size)
        return question.replace(
            "{context}", _with_needles(hay, needles, wording.join if config.haystack == "text" else "\n")
        )

    most = (
        words.names_available(language) - len(keys) if config.haystack == "needles" and config.keys == "words" else None
    )
    short = question.rpartition("{context}")[2].strip()
    references = tuple(value for i in asked for value in values[i])
    return Case(kind, short, prefix, references, prompt, _NEW_TOKENS, most=most)


def _keys(rng: np.random.Generator, config: Needles, language: str, count: int) -> list[str]:
    return (
        [words.identifier(rng) for _ in range(count)] if config.keys == "uuids" else words.names(rng, language, count)
    )


def _value(rng: np.random.Generator, config: Needles) -> str:
    return words.identifier(rng) if config.values == "uuids" else words.number(rng)


def _other_needles(
    rng: np.random.Generator, config: Needles, language: str, wording: Wording, name: str, keys: set[str], size: int
) -> list[str]:
    if config.keys == "uuids":
        others = [words.identifier(rng) for _ in range(size)]
    else:
        # All names in one random order, so that a longer context begins with the same needles.
        others = [key for key in words.names(rng, language, words.names_available(language)) if key not in keys][:size]
    rng = np.random.default_rng(rng.integers(2**63))
    return [wording.needle.format(values=name, key=key, value=_value(rng, config)) for key in others]


def _pages(language: str, first: int, size: int) -> str:
    """Return `size` words (English) or characters (Japanese) of held-out pages, from one page on. The pages are repeated if needed."""
    pages, text, count, i = words.corpus_text(language), [], 0, first
    while count < size:
        page = pages[i % len(pages)]
        units = page.split(" ") if language == "en" else page
        text.append(" ".join(units[: size - count]) if language == "en" else units[: size - count])
        count, i = count + len(units), i + 1
    joined = WORDINGS[language].join.join(text)
    # A needle at the end must not continue a Japanese sentence that was cut, since there is no space between words.
    return joined if language == "en" or joined.endswith(("。", "！", "？")) else joined + "。"


def _with_needles(hay: list[str], needles: list[tuple[float, str]], join: str) -> str:
    parts, done = [], 0
    for position, needle in needles:
        place = int(len(hay) * position)
        parts += [*hay[done:place], needle]
        done = place
    return join.join([*parts, *hay[done:]])
