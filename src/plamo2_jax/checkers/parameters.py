"""Kinds of parameters that checkers share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from plamo2_jax.checkers.checker import LONGEST_TEXT, Language, Parameter

RELATIONS = ("at least", "less than")
"""Relations of a count, as in IFEval: `at least` n, or `less than` n."""
_RELATION_WORDS = {"ja": {"at least": "以上", "less than": "未満"}, "en": {name: name for name in RELATIONS}}
LONGEST = 10_000
"""Largest number of characters of a text that is a parameter, except a prompt or document."""
MOST = 1_000_000
"""Largest count."""
TOPIC_WORDS = {
    "ja": ("桜", "自転車", "海", "時計", "本", "雨", "友達", "音楽", "電車", "台所", "冬", "会議", "地図", "写真", "公園"),
    "en": ("signal", "potato", "river", "window", "engine", "garden", "paper", "winter", "bridge", "letter", "market"),
}  # fmt: skip
"""Words for drawn parameters."""
PHRASES = {
    "ja": (
        "以上で説明を終わります。",
        "続きはまた次回。",
        "ご質問はありますか？",
        "お読みいただきありがとうございました。",
    ),
    "en": (
        "That is all for today.",
        "Let me know what you think.",
        "Is there anything else?",
        "Thank you for reading.",
    ),
}
_QUOTED = {"ja": "「{}」", "en": '"{}"'}


def is_text(value: Any, longest: int = LONGEST) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and bool(value.strip())


def is_count(value: Any, least: int = 0, most: int = MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def quoted(value: str, language: Language) -> str:
    """Write a text in the quotation marks of a language, on one line."""
    return _QUOTED[language].format(value.replace("\n", "\\n"))


def count(low: int, high: int, *, least: int = 0, most: int = MOST, step: int = 1, optional: bool = False) -> Parameter:
    """Return a parameter for a number, which is drawn from low, low + step, …, high."""
    return Parameter(
        f"a whole number from {least:,} to {most:,}",
        lambda value: is_count(value, least, most),
        lambda rng, language: rng.randrange(low, high + 1, step),
        optional=optional,
    )


def choice(*values: str, optional: bool = False) -> Parameter:
    """Return a parameter with a list of allowed values."""
    return Parameter(
        " or ".join(f'"{value}"' for value in values),
        lambda value: isinstance(value, str) and value in values,
        lambda rng, language: rng.choice(values),
        optional=optional,
    )


def text(japanese: Sequence[str], english: Sequence[str] | None = None, *, longest: int = LONGEST) -> Parameter:
    """Return a parameter for a text. Drawn values come from one of two lists."""
    drawn = {"ja": tuple(japanese), "en": tuple(japanese if english is None else english)}
    return Parameter(
        f"a text of at most {longest:,} characters that is not blank",
        lambda value: is_text(value, longest),
        lambda rng, language: rng.choice(drawn[language]),
        quoted,
    )


def texts(low: int = 1, high: int = 3, *, optional: bool = False) -> Parameter:
    """Return a parameter for a list of words."""
    return Parameter(
        "a list of 1 to 100 texts, none of them blank",
        lambda value: (
            isinstance(value, list | tuple) and 1 <= len(value) <= 100 and all(is_text(item) for item in value)
        ),
        lambda rng, language: rng.sample(TOPIC_WORDS[language], rng.randint(low, high)),
        lambda value, language: ("、" if language == "ja" else ", ").join(quoted(item, language) for item in value),
        optional=optional,
    )


def _phrase(rng: random.Random, language: Language) -> str:
    return rng.choice(PHRASES[language])


RELATION = Parameter(
    '"at least" or "less than"',
    lambda value: isinstance(value, str) and value in RELATIONS,
    lambda rng, language: rng.choice(RELATIONS),
    lambda value, language: _RELATION_WORDS[language][value],
)
WORD = text(TOPIC_WORDS["ja"], TOPIC_WORDS["en"])
WORDS = texts()
PHRASE = text(PHRASES["ja"], PHRASES["en"])
PROMPT = text(
    ("日本で一番高い山は何ですか。", "おいしいお茶の入れ方を教えてください。"),
    ("What is the highest mountain in Japan?", "How do I make good tea?"),
    longest=LONGEST_TEXT,
)
"""A prompt or document that the answer repeats or changes."""
FLAG = Parameter(
    "true or false", lambda value: isinstance(value, bool), lambda rng, language: rng.random() < 0.5, optional=True
)


def compare(number: int, relation: str, bound: int) -> bool:
    """Return whether a number is at least, or less than, a bound."""
    return number < bound if relation == "less than" else number >= bound


def ordered(least: str, most: str):
    """Return the test for `Checker.consistent` that one parameter is not above another."""

    def problem(parameters) -> str | None:
        if parameters[least] > parameters[most]:
            return f"{least}={parameters[least]} is above {most}={parameters[most]}: {least} must be at most {most}"
        return None

    return problem
