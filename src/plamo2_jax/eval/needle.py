"""Needle in a haystack: one sentence inserted into ordinary text. At the end its beginning is repeated, and the model must complete it.

The test follows Kamradt (2023). Here the sentence assigns a number to a city, the text consists of held-out documents, and the wrong
candidates are other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.phonebook_names import LANGUAGES, numbers
from plamo2_jax.eval.retrieval import Question
from plamo2_jax.tokenizer.tokenizer import Tokenizer

_CITIES = {
    "ja": ["札幌", "仙台", "金沢", "京都", "大阪", "神戸", "広島", "福岡", "長崎", "那覇", "横浜", "名古屋"],
    "en": [
        "Boston",
        "Chicago",
        "Denver",
        "Dublin",
        "Edinburgh",
        "London",
        "Oxford",
        "Paris",
        "Seattle",
        "Sydney",
        "Toronto",
        "Vienna",
    ],
}
_NEEDLE = {"ja": "\n{city}の合言葉は「", "en": "\nThe secret number of {city} is"}
_CLOSE = {"ja": "」である。\n", "en": ".\n"}


def questions(
    tokenizer: Tokenizer,
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
        tokenizer: Tokenizer of the model.
        texts: Documents by language, for the haystack.
        lengths: Lengths of prompt and answer, in tokens.
        depths: Positions of the needle, as fractions of the text in tokens.
        samples: Number of questions per language, length and depth.
        candidates: Number of numbers to choose from.
        digits: Number of digits.
        seed: Random seed.

    Raises:
        ValueError: A length is too short for the needle and its question, or there is no text in a language.
    """
    for language, documents in texts.items():
        if language not in LANGUAGES or not documents:
            raise PlamoError(f"texts has the language {language!r}: it must hold documents in {' or '.join(LANGUAGES)}")
        for length in lengths:
            for depth in depths:
                for sample in range(samples):
                    rng = np.random.default_rng([seed, LANGUAGES.index(language), length, round(depth * 1000), sample])
                    yield _question(tokenizer, rng, language, documents, length, depth, candidates, digits)


def _question(
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    language: str,
    documents: Sequence[str],
    length: int,
    depth: float,
    candidates: int,
    digits: int,
) -> Question:
    options = numbers(rng, language, candidates, digits)
    begin = _NEEDLE[language].format(city=rng.choice(_CITIES[language]))
    space = "" if language == "ja" else " "
    needle = f"{begin}{space}{options[0]}{_CLOSE[language]}"
    tail = len(tokenizer.encode(f"{begin}{space}{options[0]}"))
    room = length - 1 - len(tokenizer.encode(needle)) - tail
    if room < 8:
        raise PlamoError(f"length {length} is not allowed: the needle and its question need {length - room + 8} tokens")
    hay: list[int] = []
    start = int(rng.integers(len(documents)))
    for i in range(10**6):
        if len(hay) >= room:
            break
        hay += list(tokenizer.encode(documents[(start + i) % len(documents)] + "\n"))
    # Joining texts that were cut between tokens may change the number of tokens by a few, so the text is cut a little shorter.
    hay = hay[: room - 4]
    place = round(depth * len(hay))
    before, after = tokenizer.decode(np.array(hay[:place], int)), tokenizer.decode(np.array(hay[place:], int))
    answers = tuple(f"{space}{option}" for option in options)
    return Question(f"{before}{needle}{after}{begin}", answers[0], answers, language, length, float(depth))
