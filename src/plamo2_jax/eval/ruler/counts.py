"""Counting words: the most common words of a numbered list, and the most frequent words of a coded text (RULER's cwe and fwe)."""

from __future__ import annotations

import math

import numpy as np

from plamo2_jax.eval.ruler import words
from plamo2_jax.eval.ruler.case import Case
from plamo2_jax.eval.ruler.wording import WORDINGS

_COMMON = 10
_LONG = 4096
"""From this length on, words are repeated more often."""
_COMMON_NEW_TOKENS, _FREQUENT_NEW_TOKENS = 120, 50
_ALPHA = 2.0
_ZETA = math.pi**2 / 6
"""Riemann's zeta function of `_ALPHA`."""
_DOTS = "..."


def common_case(kind: str, language: str, seed: list[int], length: int) -> Case:
    """Return a question about the ten most common words of a list, behind an example of a short list."""
    wording, rng = WORDINGS[language], np.random.default_rng(seed)
    long = length >= _LONG
    vocabulary = words.corpus_words(language)
    question, prefix = wording.common
    example, often, rarely = (40, 10, 3) if long else (20, 3, 1)
    common, context = _numbered(rng.permutation(len(vocabulary))[:example], vocabulary, often, rarely, rng)
    answer = " ".join(f"{i}. {word}" for i, word in enumerate(common, start=1))
    shown = f"{question.replace('{context}', context)}{prefix} {answer}\n"
    order, shuffle = rng.permutation(len(vocabulary)), [*seed, 1]

    def prompt(size: int) -> str:
        repeats = (30, 3) if long else (6, 1)
        _, context = _numbered(order[:size], vocabulary, *repeats, np.random.default_rng(shuffle))
        return shown + question.replace("{context}", context)

    references = tuple(vocabulary[i] for i in order[:_COMMON])
    short = question.rpartition("\n")[2]
    return Case(kind, short, prefix, references, prompt, _COMMON_NEW_TOKENS, least=_COMMON + 1, most=len(vocabulary))


def _numbered(
    chosen: np.ndarray, vocabulary: tuple[str, ...], often: int, rarely: int, rng: np.random.Generator
) -> tuple[list[str], str]:
    """Return the common words, and the numbered list in which they occur `often` times and the others `rarely` times."""
    listed = np.concatenate([np.repeat(chosen[:_COMMON], often), np.repeat(chosen[_COMMON:], rarely)])
    text = " ".join(f"{i}. {vocabulary[word]}" for i, word in enumerate(rng.permutation(listed), start=1))
    return [vocabulary[i] for i in chosen[:_COMMON]], text


def frequent_case(kind: str, language: str, seed: list[int], length: int) -> Case:
    """Return a question about the three most frequent words of a text without meaning, whose frequencies follow a zeta distribution.

    The word of rank k occurs n k^-2 / zeta(2) times in a text of about n words. Dots take the place of the first word.
    """
    wording, rng = WORDINGS[language], np.random.default_rng(seed)
    vocabulary: dict[str, None] = {_DOTS: None}
    while len(vocabulary) < max(5, (length - _FREQUENT_NEW_TOKENS) // 50):
        vocabulary[words.coded(rng, language)] = None
    ranked, shuffle = list(vocabulary), [*seed, 1]
    shares = np.arange(1, len(ranked) + 1) ** -_ALPHA / _ZETA
    question, prefix = wording.frequent

    def prompt(size: int) -> str:
        listed = np.repeat(np.arange(len(ranked)), (size * shares).astype(int))
        context = " ".join(ranked[i] for i in np.random.default_rng(shuffle).permutation(listed))
        return question.replace("{context}", context)

    # With fewer words, the fourth and the fifth rank may occur equally often.
    return Case(kind, question.rpartition("\n")[2], prefix, tuple(ranked[1:4]), prompt, _FREQUENT_NEW_TOKENS, least=80)
