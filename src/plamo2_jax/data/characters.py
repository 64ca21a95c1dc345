"""Counts over the characters of a text, compiled by numba: classes of characters, common words, repeated windows.

The counts are the same as with Python's regular expressions. The classes come from a table with a byte for each code point, which is made
from these expressions once a process.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np

from plamo2_jax.user_cache import compile_function

NEWLINES = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
# Controls except tab and newline, the byte-order mark, the interlinear marks, non-characters, lone surrogates.
UNWANTED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
    "|[" + "".join(chr(plane << 16 | low) for plane in range(1, 17) for low in (0xFFFE, 0xFFFF)) + "]"
)
_LETTER = re.compile(r"[^\W\d_]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa\u30fc\uff66-\uff9d]")
_HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_CLASSES = (_LETTER, _KANA, _HAN, _LATIN, re.compile(r"\s"), re.compile(r"\w"), NEWLINES, UNWANTED)
_IS_LETTER, _IS_KANA, _IS_HAN, _IS_LATIN, _IS_SPACE, _IN_WORD, _IS_NEWLINE, _IS_UNWANTED = (1 << i for i in range(8))
_COMMON = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "for",
    "that",
    "are",
    "with",
    "it",
    "as",
    "be",
    "on",
    "or",
    "by",
    "this",
    "you",
    "a",
    "can",
)
_STRETCH = 1_000_000


class Counts(NamedTuple):
    """Numbers of characters by class, of words between white space, and of the common English words among them."""

    letters: int
    kana: int
    han: int
    latin: int
    words: int
    english: int


def count_characters(text: str) -> Counts:
    """Return the numbers of letters, kana, kanji, Latin letters, words, and of the twenty most common English words.

    An English word has no letter, digit or underscore beside it. Its case does not matter.
    """
    return Counts(*compile_function(_count)(_codes(text), _classes(), _folded(), _common_words()))


def is_plain(text: str) -> bool:
    """Return whether a text has nothing that `clean.normalize_text` removes or replaces: controls, other newlines, white space at the
    end of a line or at either end of the text, more than one blank line.
    """
    return compile_function(_is_plain)(_codes(text), _classes())


def most_frequent_window(text: str, n: int) -> int:
    """Return how often the most frequent window of `n` characters occurs. The text must have at least `n` characters.

    For texts with more than a million windows, return the sum over parts with that many windows.
    """
    codes = _codes(text)
    windows = len(codes) - n + 1
    count = compile_function(_most_frequent)
    return sum(count(codes[start : min(start + _STRETCH, windows) + n - 1], n) for start in range(0, windows, _STRETCH))


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@functools.cache
def _every_character() -> str:
    return "".join(map(chr, range(0x110000)))


@functools.cache
def _classes() -> np.ndarray:
    """Return the classes of each code point, [1114112] uint8, a bit for each of _CLASSES."""
    classes = np.zeros(0x110000, np.uint8)
    for i, pattern in enumerate(_CLASSES):
        classes[[match.start() for match in pattern.finditer(_every_character())]] |= np.uint8(1 << i)
    return classes


@functools.cache
def _folded() -> np.ndarray:
    """Return for each code point the number of the letter a to z that it equals without regard to case, [1114112] uint8; 31 for none."""
    folded = np.full(0x110000, 31, np.uint8)
    for i in range(26):
        # Not only A and a: the long s and the dotless i are among them.
        matches = re.finditer(chr(ord("a") + i), _every_character(), re.IGNORECASE)
        folded[[match.start() for match in matches]] = i + 1
    return folded


@functools.cache
def _common_words() -> np.ndarray:
    """Return the common words, four letters at most, as numbers [20] uint32, five bits a letter."""
    return np.array(
        [functools.reduce(lambda value, c: value << 5 | (ord(c) - 96), word, 0) for word in _COMMON], np.uint32
    )


def _count(codes, classes, folded, common):
    """Count the characters by class, words, and common words."""
    letters = kana = han = latin = words = english = 0
    space = True  # Whether the character before is white space.
    length, word = 0, np.uint32(0)  # Of the current run of word characters; its letters, five bits each.
    for i in range(len(codes) + 1):
        found = classes[codes[i]] if i < len(codes) else np.uint8(0)
        letters += (found & _IS_LETTER) != 0
        kana += (found & _IS_KANA) != 0
        han += (found & _IS_HAN) != 0
        latin += (found & _IS_LATIN) != 0
        if i < len(codes):
            now = (found & _IS_SPACE) != 0
            words += space and not now
            space = now
        if found & _IN_WORD:
            length += 1
            word = (word << np.uint32(5)) | np.uint32(folded[codes[i]])
            continue
        if 0 < length <= 4:
            for k in range(len(common)):
                if word == common[k]:
                    english += 1
        length, word = 0, np.uint32(0)
    return letters, kana, han, latin, words, english


def _is_plain(codes, classes):
    """Return whether normalization keeps a text."""
    size = len(codes)
    if size == 0:
        return True
    if (classes[codes[0]] | classes[codes[size - 1]]) & _IS_SPACE:
        return False
    space, newlines = False, 0  # Whether the character before is white space other than a newline; newlines in a row.
    for i in range(size):
        found = classes[codes[i]]
        if found & (_IS_NEWLINE | _IS_UNWANTED):
            return False
        if codes[i] == 10:
            newlines += 1
            if space or newlines > 2:
                return False
        else:
            newlines = 0
            space = (found & _IS_SPACE) != 0
    return True


def _most_frequent(codes, n):
    """Return the count of the most frequent window of n characters, with a hash table that compares the characters of equal hashes."""
    windows = len(codes) - n + 1
    bits = 4
    while (1 << bits) < 2 * windows:
        bits += 1
    mask = (1 << bits) - 1
    first, counts = np.full(1 << bits, -1, np.int32), np.zeros(1 << bits, np.int32)
    base, leaving = np.uint64(0x9E3779B97F4A7C15), np.uint64(1)
    for _ in range(n):
        leaving *= base
    value, most = np.uint64(0), 0
    for i in range(len(codes)):
        value = value * base + np.uint64(codes[i])
        if i >= n:
            value -= leaving * np.uint64(codes[i - n])
        start = i - n + 1
        if start < 0:
            continue
        mixed = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        place = np.int64(mixed >> np.uint64(32)) & mask
        while first[place] >= 0:
            other = first[place]
            same = True
            for k in range(n):
                if codes[other + k] != codes[start + k]:
                    same = False
                    break
            if same:
                break
            place = (place + 1) & mask
        if first[place] < 0:
            first[place] = start
        counts[place] += 1
        most = max(most, counts[place])
    return most
