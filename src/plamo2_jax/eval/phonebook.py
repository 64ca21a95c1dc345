"""The phonebook: names and numbers line by line, then one name again; the model must say its number.

The task of Jelassi et al. (arXiv:2402.01032), on which state-space models and windowed attention fail once the book is longer than
what they can hold, and attention over everything does not. PLaMo 2's authors judge their long-context training by it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from plamo2_jax.eval.people import LANGUAGES, numbers, people
from plamo2_jax.eval.retrieval import Question, count_tokens
from plamo2_jax.tokenizer.tokenizer import Tokenizer

_TITLE = {"ja": "電話帳\n", "en": "Phone book\n"}
_QUERY = {"ja": "\n番号案内\n", "en": "\nDirectory enquiries\n"}


SEPARATOR = ": "
"""Between name and number. Where a tokenizer joins it with its neighbours (": 4" as one token), a question, which ends with the
separator, is not spelt as what was trained on; a tab is seldom joined."""


def _book(names: Sequence[str], book: Sequence[str], separator: str) -> str:
    return "".join(f"{name}{separator}{number}\n" for name, number in zip(names, book, strict=True))


def questions(
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    languages: Sequence[str] = LANGUAGES,
    samples: int = 4,
    candidates: int = 8,
    digits: int | None = None,
    separator: str = SEPARATOR,
    seed: int = 0,
) -> Iterator[Question]:
    """Questions of every language, length and depth.

    Args:
        tokenizer: lengths are counted in its ids.
        lengths: of prompt and answer; books are as long as fits.
        depths: where the entry asked for stands.
        languages: ja, en.
        samples: questions of each.
        candidates: numbers to choose from, the others of the same book.
        digits: of a number; None: telephone numbers.
        separator: between name and number; a question ends with it, spaces at its end left to the answer.
        seed: same seed, same questions.

    Raises:
        ValueError: a length is too short for two entries, or too long for the names there are.
    """
    for language in languages:
        for length in lengths:
            for depth in depths:
                for sample in range(samples):
                    rng = np.random.default_rng([seed, LANGUAGES.index(language), length, round(depth * 1000), sample])
                    yield _question(tokenizer, rng, language, length, depth, candidates, digits, separator)


def _question(
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    language: str,
    length: int,
    depth: float,
    candidates: int,
    digits: int | None,
    separator: str,
) -> Question:
    size = _entries_that_fit(tokenizer, language, length, digits, separator)
    asked = separator.rstrip(" ")
    space = separator[len(asked) :]
    while True:
        state = rng.bit_generator.state
        names, book = people(rng, language, size), numbers(rng, language, size, digits)
        target = round(depth * (size - 1))
        text = _TITLE[language] + _book(names, book, separator) + _QUERY[language]
        prompt, answer = f"{text}{names[target]}{asked}", f"{space}{book[target]}"
        # Other names are longer: leave one out until it fits.
        if count_tokens(tokenizer, prompt + answer) <= length:
            break
        rng.bit_generator.state = state
        size -= 1
        if size < 2:
            raise ValueError(f"length {length} is not allowed: a phonebook of two entries is longer")
    others = [number for i, number in enumerate(book) if i != target]
    chosen = rng.choice(len(others), min(candidates - 1, len(others)), replace=False)
    return Question(prompt, answer, (answer, *(f"{space}{others[i]}" for i in chosen)), language, length, float(depth))


def _entries_that_fit(tokenizer: Tokenizer, language: str, length: int, digits: int | None, separator: str) -> int:
    rng = np.random.default_rng(0)
    sample = _book(people(rng, language, 50), _many(rng, language, digits), separator)
    per_entry = count_tokens(tokenizer, sample) / 50
    frame = count_tokens(tokenizer, _TITLE[language] + _QUERY[language])
    # A few more than the mean says: books are cut down to what fits.
    return max(2, int(1.02 * (length - frame) / per_entry))


def _many(rng: np.random.Generator, language: str, digits: int | None) -> list[str]:
    return [numbers(rng, language, 1, digits)[0] for _ in range(50)]


def documents(
    *,
    count: int,
    entries: tuple[int, int],
    languages: Sequence[str] = LANGUAGES,
    queries: int = 4,
    digits: int | None = None,
    separator: str = SEPARATOR,
    seed: int = 0,
) -> Iterator[dict[str, str]]:
    """Phonebooks with their queries answered, as JSON records to train on; never the very book of a question.

    Args:
        count: documents.
        entries: least and most entries of a book.
        languages: in turn.
        queries: names asked for again at the end of each.
        digits: of a number; None: telephone numbers.
        separator: between name and number.
        seed: same seed, same documents.

    Raises:
        ValueError: a figure is out of range.
    """
    least, most = entries
    if not 1 <= least <= most:
        raise ValueError(
            f"entries {least} to {most} are not allowed: the least must be at least 1 and not above the most"
        )
    if count < 1 or queries < 1:
        raise ValueError("documents and queries must be at least 1")
    for i in range(count):
        language = languages[i % len(languages)]
        # A stream of its own, which no question's seed begins.
        rng = np.random.default_rng([0x70686F6E, seed, i])
        size = int(rng.integers(least, most + 1))
        names, book = people(rng, language, size), numbers(rng, language, size, digits)
        asked = rng.choice(size, min(queries, size), replace=False)
        text = _TITLE[language] + _book(names, book, separator) + _QUERY[language]
        text += _book([names[j] for j in asked], [book[j] for j in asked], separator)
        yield {"id": f"phonebook-{language}-{seed}-{i}", "text": text, "language": language}
