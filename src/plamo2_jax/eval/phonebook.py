"""Phonebook: lines of names and numbers. At the end one name is repeated, and the model must complete its number.

This is the task of Jelassi et al. (arXiv:2402.01032). State-space models and windowed attention fail on it when the book is longer than
their memory, and full attention does not. The authors of PLaMo 2 also evaluate their long-context training with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.phonebook_names import LANGUAGES, full_names, numbers
from plamo2_jax.eval.retrieval import Question, settings

_TITLE = {"ja": "電話帳\n", "en": "Phone book\n"}
_QUERY = {"ja": "\n番号案内\n", "en": "\nDirectory enquiries\n"}

SEPARATOR = ": "
"""Text between name and number. If a tokenizer merges it with its neighbours (": 4" as one token), a question, which ends with the
separator, is tokenized differently from the training text. A tab is rarely merged."""


def _book(names: Sequence[str], book: Sequence[str], separator: str) -> str:
    return "".join(f"{name}{separator}{number}\n" for name, number in zip(names, book, strict=True))


def questions(
    count_tokens: Callable[[str], int],
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
    """Yield questions of every language, length and depth.

    Args:
        count_tokens: Returns the number of tokens of a text with bos.
        lengths: Lengths of prompt and answer, in tokens; books are as long as fits.
        depths: Positions of the requested entry, as fractions of the book.
        languages: Languages, of ja and en.
        samples: Number of questions per language, length and depth.
        candidates: Number of numbers to choose from; the wrong ones are from the same book.
        digits: Number of digits; None: telephone numbers.
        separator: Text between name and number. A question ends with it; spaces at its end belong to the answer.
        seed: Random seed.

    Raises:
        PlamoError: A length is too short for two entries, or there are too few names for it.
    """
    for language, length, depth, rng in settings(languages, lengths, depths, samples, seed):
        size = _entries_that_fit(count_tokens, language, length, digits, separator)
        asked = separator.rstrip(" ")
        space = separator[len(asked) :]
        while True:
            state = rng.bit_generator.state
            names, book = full_names(rng, language, size), numbers(rng, language, size, digits)
            target = round(depth * (size - 1))
            text = _TITLE[language] + _book(names, book, separator) + _QUERY[language]
            prompt, answer = f"{text}{names[target]}{asked}", f"{space}{book[target]}"
            # These names may be longer than the average. Then entries are removed until the book fits.
            if count_tokens(prompt + answer) <= length:
                break
            rng.bit_generator.state = state
            size -= 1
            if size < 2:
                raise PlamoError(f"length {length} is not allowed: a phonebook of two entries is longer")
        others = [number for i, number in enumerate(book) if i != target]
        chosen = rng.choice(len(others), min(candidates - 1, len(others)), replace=False)
        options = (answer, *(f"{space}{others[i]}" for i in chosen))
        yield Question(prompt, answer, options, language, length, float(depth))


def _entries_that_fit(
    count_tokens: Callable[[str], int], language: str, length: int, digits: int | None, separator: str
) -> int:
    rng = np.random.default_rng(0)
    names = full_names(rng, language, 50)
    # One by one, because there may be fewer than 50 different numbers.
    sample = _book(names, [numbers(rng, language, 1, digits)[0] for _ in names], separator)
    per_entry = count_tokens(sample) / 50
    frame = count_tokens(_TITLE[language] + _QUERY[language])
    # A few more entries than the average length suggests. The caller removes entries until the book fits.
    return max(2, int(1.02 * (length - frame) / per_entry))


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
    """Yield phonebooks with answered queries, as JSON records for training. They differ from the books of all questions.

    Args:
        count: Number of documents.
        entries: Smallest and largest number of entries per book.
        languages: Languages, which alternate.
        queries: Number of queries at the end of each book.
        digits: Number of digits; None: telephone numbers.
        separator: Text between name and number.
        seed: Random seed.

    Raises:
        PlamoError: A number is out of range.
    """
    least, most = entries
    if not 1 <= least <= most:
        raise PlamoError(
            f"entries=({least}, {most}) is not allowed: the first must be at least 1 and at most the second"
        )
    if count < 1 or queries < 1:
        raise PlamoError(f"count={count} and queries={queries} are not allowed: both must be at least 1")
    for i in range(count):
        language = languages[i % len(languages)]
        # A separate random stream, which no question uses.
        rng = np.random.default_rng([0x70686F6E, seed, i])
        size = int(rng.integers(least, most + 1))
        names, book = full_names(rng, language, size), numbers(rng, language, size, digits)
        asked = rng.choice(size, min(queries, size), replace=False)
        text = _TITLE[language] + _book(names, book, separator) + _QUERY[language]
        text += _book([names[j] for j in asked], [book[j] for j in asked], separator)
        yield {"id": f"phonebook-{language}-{seed}-{i}", "text": text, "language": language}
