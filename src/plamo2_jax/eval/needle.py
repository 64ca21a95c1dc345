"""Needle in a haystack: a sentence inserted into ordinary text. Its beginning is repeated at the end, and the model must complete it.

The test follows Kamradt (2023). Here the sentence assigns a number to a city, the text consists of held-out documents, and the wrong
candidates are other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.phonebook_names import LANGUAGES, numbers
from plamo2_jax.eval.retrieval import Question, settings
from plamo2_jax.tokenizer.tokenizer import Tokenizer

_CITIES = {
    "ja": "札幌 仙台 金沢 京都 大阪 神戸 広島 福岡 長崎 那覇 横浜 名古屋",
    "en": "Boston Chicago Denver Dublin Edinburgh London Oxford Paris Seattle Sydney Toronto Vienna",
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
        texts: Documents by language, for the haystack.
        lengths: Lengths of prompt and answer, in tokens.
        depths: Positions of the needle, as fractions of the text in tokens.
        samples: Number of questions per language, length and depth.
        candidates: Number of numbers to choose from.
        digits: Number of digits.
        seed: Random seed.

    Raises:
        PlamoError: A length is too short for the needle and its question, or there is no text in a language.
    """
    for language, documents in texts.items():
        if language not in LANGUAGES or not documents:
            raise PlamoError(f"texts has the language {language!r}: it must hold documents in {' or '.join(LANGUAGES)}")
    for language, length, depth, rng in settings(texts, lengths, depths, samples, seed):
        options = numbers(rng, language, candidates, digits)
        begin = _NEEDLE[language].format(city=rng.choice(_CITIES[language].split()))
        space = "" if language == "ja" else " "
        needle = f"{begin}{space}{options[0]}{_CLOSE[language]}"
        tail = len(tokenizer.encode(f"{begin}{space}{options[0]}"))
        room = length - 1 - len(tokenizer.encode(needle)) - tail
        if room < 8:
            needed = length - room + 8
            raise PlamoError(f"length {length} is not allowed: the needle and its question need {needed} tokens")
        documents = texts[language]
        hay: list[int] = []
        i = int(rng.integers(len(documents)))
        while len(hay) < room:
            hay += list(tokenizer.encode(documents[i % len(documents)] + "\n"))
            i += 1
        # Joining texts that were cut between tokens may change the number of tokens by a few, so the text is cut a little shorter.
        hay = hay[: room - 4]
        place = round(depth * len(hay))
        before, after = (tokenizer.decode(np.array(part, int)) for part in (hay[:place], hay[place:]))
        answers = tuple(f"{space}{option}" for option in options)
        yield Question(f"{before}{needle}{after}{begin}", answers[0], answers, language, length, float(depth))
