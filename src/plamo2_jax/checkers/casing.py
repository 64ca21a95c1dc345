"""Checkers of capital and small letters in English."""

from __future__ import annotations

import re

from plamo2_jax.checkers.checker import Checker, Wordings, plain
from plamo2_jax.checkers.guess import guess_language
from plamo2_jax.checkers.parameters import RELATION, compare, count

# Tokens as in the Penn Treebank: punctuation is separate, hyphens and inner periods are part of a word, and 'M of I'M is a word.
_TOKEN = re.compile(r"""'?[^\s,;:@#$%&?!()\[\]{}<>"“”‘’'`]+(?:'[^\s,;:@#$%&?!()\[\]{}<>"“”‘’'`]+)*""")
_CLITIC = re.compile(r"(.*[A-Za-z])('(?:s|m|d|ll|re|ve)|n't)$", re.IGNORECASE | re.DOTALL)
_LETTERS = re.compile("[A-Za-z]")
_CAMEL = re.compile(r"\b(?:[A-Z][a-z0-9]+){2,}\b")
_SNAKE = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")
_TITLE = re.compile(r"\b[A-Z][a-z]+\b")
LONGEST_WORD = 45
"""Largest number of letters of a word of English text. Longer runs are words without spaces between them."""


def _is_english(text: str) -> bool:
    longest = max(map(len, re.findall("[A-Za-z]+", text)), default=0)
    return longest <= LONGEST_WORD and guess_language(text) in ("en", None)


def uppercase_english(text: str) -> bool:
    return text.isupper() and _is_english(text)


def lowercase_english(text: str) -> bool:
    return text.islower() and _is_english(text)


def capital_words(text: str, relation: str, count: int) -> bool:
    found = 0
    for token in _TOKEN.findall(text):
        clitic = _CLITIC.match(token[-100:])
        parts = clitic.groups() if clitic else (token,)
        found += sum(1 for part in parts if part.isupper())
    return compare(found, relation, count)


def uppercase_letters(text: str) -> bool:
    letters = _LETTERS.findall(text)
    return bool(letters) and all(letter.isupper() for letter in letters)


def lowercase_letters(text: str) -> bool:
    letters = _LETTERS.findall(text)
    return bool(letters) and all(letter.islower() for letter in letters)


def camel_case(text: str) -> bool:
    return _CAMEL.search(text) is not None


def snake_case(text: str) -> bool:
    # One underscore at a time, so that a long run of words is read once.
    return any(_SNAKE.search(part) for part in re.findall(r"[A-Za-z0-9_]+", text) if "_" in part)


def title_case(text: str) -> bool:
    return _TITLE.search(text) is not None


CHECKERS = (
    plain(
        "uppercase_english",
        "The text is English, and all its letters are capital.",
        uppercase_english,
        en=(
            "Write in capital letters only.",
            "Use English and capitalize every letter.",
            "The whole answer must be in English and upper case.",
        ),
    ),
    plain(
        "lowercase_english",
        "The text is English, and all its letters are small.",
        lowercase_english,
        en=(
            "Write in small letters only.",
            "Use English without any capital letter.",
            "The whole answer must be in English and lower case.",
        ),
    ),
    Checker(
        "capital_words",
        "Words of capital letters occur at least, or less than, a number of times.",
        capital_words,
        {"relation": RELATION, "count": count(1, 20)},
        {
            "en": Wordings(
                (
                    "Write {relation} {count} words in capital letters.",
                    "Use {relation} {count} fully capitalized words.",
                ),
                ("The number of words in ALL CAPS has to be {relation} {count}.",),
            ),
        },
    ),
    plain(
        "uppercase_letters",
        "Latin letters occur, and all are capital.",
        uppercase_letters,
        ja=(
            "英単語を一つ以上使い、英字は大文字だけで書いてください。",
            "アルファベットはすべて大文字とし、必ず使ってください。",
            "英語の語を入れ、その文字を全部大文字にしてください。",
        ),
        en=(
            "Use Latin letters, all of them capital.",
            "Every Latin letter must be upper case, and there must be some.",
            "Include Latin letters and capitalize each of them.",
        ),
    ),
    plain(
        "lowercase_letters",
        "Latin letters occur, and all are small.",
        lowercase_letters,
        ja=(
            "英単語を一つ以上使い、英字は小文字だけで書いてください。",
            "アルファベットはすべて小文字とし、必ず使ってください。",
            "英語の語を入れ、その文字を全部小文字にしてください。",
        ),
        en=(
            "Use Latin letters, all of them small.",
            "Every Latin letter must be lower case, and there must be some.",
            "Include Latin letters and capitalize none of them.",
        ),
    ),
    plain(
        "camel_case",
        "A word in CamelCase occurs.",
        camel_case,
        ja=(
            "CamelCase の語を一つ以上使ってください。",
            "キャメルケースの単語を必ず入れてください。",
            "回答のどこかで MyName のようなキャメルケースの語を用いること。",
        ),
        en=(
            "Use a word in CamelCase.",
            "Include at least one CamelCase name.",
            "Somewhere in the answer, write a name such as MyName in CamelCase.",
        ),
    ),
    plain(
        "snake_case",
        "A word in snake_case occurs.",
        snake_case,
        ja=(
            "snake_case の語を一つ以上使ってください。",
            "スネークケースの単語を必ず入れてください。",
            "回答のどこかで my_name のようなスネークケースの語を用いること。",
        ),
        en=(
            "Use a word in snake_case.",
            "Include at least one snake_case name.",
            "Somewhere in the answer, write a name such as my_name in snake_case.",
        ),
    ),
    plain(
        "title_case",
        "A word with a capital first letter and small letters after it occurs.",
        title_case,
        ja=(
            "Title Case の語句を一つ以上使ってください。",
            "各語の頭が大文字の英語の語句を入れてください。",
            "回答のどこかで Title Case で書いた英語を用いること。",
        ),
        en=(
            "Use a phrase in Title Case.",
            "Include at least one Title Case phrase.",
            "Somewhere in the answer, write a heading in Title Case.",
        ),
    ),
)
