"""Numbers in Japanese and English texts, as exact fractions: Arabic digits of either width, kanji, units such as 万 and million."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction

_INTEGER = r"(?:\d{1,3}(?:,\d{3}){1,20}|\d{1,60})"
_DIGITS = rf"{_INTEGER}(?:\.\d{{1,60}})?"
# 3千5百, 3千500, 5百20
_THOUSANDS = rf"(?:{_DIGITS}千(?:{_DIGITS}百)?(?:\d{{1,3}})?|{_DIGITS}百(?:\d{{1,2}})?)"
_UNITS = {"百": 10**2, "千": 10**3, "万": 10**4, "億": 10**8, "兆": 10**12}
_ENGLISH_UNITS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER = re.compile(
    rf"(?P<sign>(?<![A-Za-z0-9)])[-−])?"
    rf"(?:(?P<over>\d{{1,60}})/(?P<under>\d{{1,60}})"
    rf"|(?P<ja>(?:(?:{_THOUSANDS}|{_DIGITS})[万億兆]){{1,4}}(?:{_THOUSANDS}|{_DIGITS})?|{_THOUSANDS})"
    rf"|(?P<plain>{_DIGITS})(?:\s(?P<unit>{'|'.join(_ENGLISH_UNITS)})\b)?)",
    re.IGNORECASE | re.ASCII,
)
_PART = re.compile(rf"({_DIGITS})([百千]?)([万億兆]?)", re.ASCII)
_KANJI = re.compile("[〇一二三四五六七八九十百千万億兆]{1,40}")
_KANJI_DIGITS = {digit: value for value, digit in enumerate("〇一二三四五六七八九")}
_ZERO_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
    "twenty"
)
_WORDS: Mapping[str, Fraction | int] = {word: value for value, word in enumerate(_ZERO_TO_TWENTY.split())} | {
    "first": 1,
    "second": 2,
    "third": 3,
    "half": Fraction(1, 2),
}
_JANUARY_TO_DECEMBER = "january february march april may june july august september october november december"
_MONTHS = {month: value for value, month in enumerate(_JANUARY_TO_DECEMBER.split(), 1)}
_WORD = re.compile(r"[a-z]+")
_MIXED = re.compile(rf"({_INTEGER})\s?([¼-¾⅐-⅞])")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,60})\}\{(\d{1,60})\}")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_MARKER = re.compile(r"####|答え?(?:は|[:：])?|解答[:：]|(?:final )?answer(?: is)?[:：]?", re.IGNORECASE)


def numbers(text: str) -> list[Fraction]:
    """Return the numbers that are written with Arabic digits, in order.

    "1億2000万" and "120 million" are one number, "3/4" is three quarters. A sign counts, except after a letter, a digit or a parenthesis.
    """
    return [value for match in _NUMBER.finditer(_plain(text)) if (value := _value(match)) is not None]


def numbers_in_words(text: str) -> set[Fraction]:
    """Return the numbers that are written in kanji, as English words up to twenty, or as English names of months."""
    text = unicodedata.normalize("NFKC", text)
    found = {_kanji(match) for match in _KANJI.findall(text)}
    words = _WORD.findall(text.lower())
    return found | {Fraction(table[word]) for table in (_WORDS, _MONTHS) for word in words if word in table}


def final_number(text: str) -> Fraction | None:
    r"""Return the number that a solution ends with, or None without one.

    It is the number in the last \boxed{}; otherwise the first number after the last "####", "答え" or "answer"; otherwise the last number,
    in Arabic digits if there are any.
    """
    for boxed in reversed(_BOXED.findall(_FRACTION.sub(r"\1/\2", text))):
        if found := numbers(boxed):
            return found[-1]
    plain = _plain(text)
    markers = list(_MARKER.finditer(plain))
    if markers and (found := numbers(plain[markers[-1].end() :])):
        return found[0]
    if found := numbers(text):
        return found[-1]
    kanji = _KANJI.findall(text)
    return _kanji(kanji[-1]) if kanji else None


def _plain(text: str) -> str:
    # NFKC turns "½" into "1⁄2" with U+2044, and "2½" into "21⁄2".
    text = _MIXED.sub(_improper, _FRACTION.sub(r"\1/\2", text))
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def _improper(match: re.Match[str]) -> str:
    """Return a mixed number such as 2½ as a fraction, 5/2."""
    over, _, under = unicodedata.normalize("NFKC", match[2]).partition("\u2044")
    return f"{int(match[1].replace(',', '')) * int(under) + int(over)}/{under}"


def _value(match: re.Match[str]) -> Fraction | None:
    if match["over"]:
        if int(match["under"]) == 0:
            return None
        value = Fraction(int(match["over"]), int(match["under"]))
    elif match["ja"]:
        value = part = Fraction(0)
        for digits, small, large in _PART.findall(match["ja"]):
            part += _decimal(digits) * _UNITS.get(small, 1)
            if large:
                value, part = value + part * _UNITS[large], Fraction(0)
        value += part
    else:
        value = _decimal(match["plain"]) * _ENGLISH_UNITS.get((match["unit"] or "").lower(), 1)
    return -value if match["sign"] else value


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _kanji(text: str) -> Fraction:
    """Return the value of a number in kanji, with units (三百二十五) or digit by digit (二〇二五)."""
    total = part = digit = 0
    for character in text:
        if character in _KANJI_DIGITS:
            digit = digit * 10 + _KANJI_DIGITS[character]
        elif character in "十百千":
            part += (digit or 1) * {"十": 10, "百": 100, "千": 1000}[character]
            digit = 0
        else:
            total += (part + digit or 1) * _UNITS[character]
            part = digit = 0
    return Fraction(total + part + digit)
