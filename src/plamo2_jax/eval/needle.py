"""Needle in a haystack: a sentence inserted into ordinary text. Its beginning is repeated at the end, and the model must complete it.

The test follows Kamradt (2023). Here the sentence assigns a number to a city, the text consists of held-out documents, and the wrong
candidates are other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from plamo2_jax.data.corpus import documents
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.phonebook_names import LANGUAGES, numbers
from plamo2_jax.eval.retrieval import Question, settings
from plamo2_jax.eval.token_budget import largest_size

_CITIES = {
    "ja": "札幌 仙台 金沢 京都 大阪 神戸 広島 福岡 長崎 那覇 横浜 名古屋",
    "en": "Boston Chicago Denver Dublin Edinburgh London Oxford Paris Seattle Sydney Toronto Vienna",
}
_NEEDLE = {"ja": "\n{city}の合言葉は「", "en": "\nThe secret number of {city} is"}
_CLOSE = {"ja": "」である。\n", "en": ".\n"}


def questions(
    count_tokens: Callable[[str], int],
    texts: Mapping[str, Sequence[str]],
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int = 4,
    candidates: int = 8,
    digits: int = 5,
    seed: int = 0,
) -> Iterator[Question]:
    """Yield questions of every language, length and depth.

    Args:
        count_tokens: Returns the number of tokens of a text with bos.
        texts: Documents by language, for the haystack.
        lengths: Lengths of prompt and answer, in tokens.
        depths: Positions of the needle, as fractions of the text in characters.
        samples: Number of questions per language, length and depth.
        candidates: Number of numbers to choose from.
        digits: Number of digits.
        seed: Random seed.

    Raises:
        PlamoError: A length is too short for the needle and its question, or there is no text in a language.
    """
    for language, pages in texts.items():
        if language not in LANGUAGES or not pages:
            raise PlamoError(f"texts has the language {language!r}: it must hold documents in {' or '.join(LANGUAGES)}")
    for language, length, depth, rng in settings(texts, lengths, depths, samples, seed):
        options = numbers(rng, language, candidates, digits)
        begin = _NEEDLE[language].format(city=rng.choice(_CITIES[language].split()))
        space = "" if language == "ja" else " "
        needle = f"{begin}{space}{options[0]}{_CLOSE[language]}"
        answers = tuple(f"{space}{option}" for option in options)
        pages, first = texts[language], int(rng.integers(len(texts[language])))

        def prompt(size: int, *, pages=pages, first=first, needle=needle, begin=begin, depth=depth) -> str:
            hay = _text(pages, first, size)
            place = round(depth * size)
            return f"{hay[:place]}{needle}{hay[place:]}{begin}"

        def tokens(size: int, *, prompt=prompt, answer=answers[0]) -> int:
            return count_tokens(prompt(size) + answer)

        size = largest_size(tokens, length)
        if size is None:
            raise PlamoError(f"length {length} is not allowed: the needle and its question need {tokens(1)} tokens")
        yield Question(prompt(size), answers[0], answers, language, length, float(depth))


def _text(pages: Sequence[str], first: int, size: int) -> str:
    """Return `size` characters of pages, from one on. The pages are repeated if needed."""
    parts, count, i = [], 0, first
    while count < size:
        parts.append(pages[i % len(pages)] + "\n")
        count, i = count + len(parts[-1]), i + 1
    return "".join(parts)[:size]


def heldout_pages(languages: Sequence[str]) -> dict[str, list[str]]:
    """Return the held-out pages of the bundled corpus by language, for the haystack."""
    return {language: [entry["text"] for entry in documents(language, "heldout")] for language in languages}
