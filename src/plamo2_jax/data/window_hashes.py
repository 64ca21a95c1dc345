"""Hashes of windows of characters or words: polynomials modulo 2**64, in numpy for many lengths, and compiled for one look-up."""

from __future__ import annotations

import functools
import sys
import unicodedata

import numpy as np

from plamo2_jax.user_cache import compile_function

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_TABLE_BITS = 22
WORD_BREAK = np.uint32(0)
"""Code that stands for white space and punctuation between two words. No kept character has it."""


def unit_hashes(codes: np.ndarray, kind: str) -> np.ndarray:
    """Return the hash [n] u64 of each kept character, or of each word, of `codes_of` a text."""
    return compile_function(_unit_hashes)(codes, kind == "words")


def has_window(units: np.ndarray, length: int, presence: Presence, hashes: np.ndarray) -> bool:
    """Return whether the hash of a window of `length` units is among sorted hashes [k] u64, whose presence is given."""
    return compile_function(_has_window)(units, length, presence.present, hashes)


class Windows:
    """Hashes of the windows of a stretch of characters or words: polynomials, as differences of running sums.

    Args:
        units: Hash of each character or word [n] u64.
    """

    def __init__(self, units: np.ndarray):
        # A power of two, so that few lengths are kept.
        up, self._inverses = powers(1 << len(units).bit_length())
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(units * up[: len(units)], dtype=np.uint64)])

    def hashes(self, length: int, starts: np.ndarray | None = None) -> np.ndarray:
        """Return the hash [k] u64 of each window of `length` units, or of the windows at some positions."""
        count = max(len(self._sums) - length, 0)
        if starts is None:
            return (self._sums[length:] - self._sums[:count]) * self._inverses[:count]
        starts = starts[starts < count]
        return (self._sums[starts + length] - self._sums[starts]) * self._inverses[starts]


class Presence:
    """A set of hashes that may also report others: one look-up by the high bits.

    Args:
        hashes: The hashes [k] u64.
    """

    def __init__(self, hashes: np.ndarray):
        self.present = np.zeros(1 << _TABLE_BITS, bool)
        self.present[self._slots(hashes)] = True

    def may_have(self, hashes: np.ndarray) -> np.ndarray:
        """Return whether each hash may be in the set [k] bool."""
        return np.take(self.present, self._slots(hashes))

    @staticmethod
    def _slots(hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(64 - _TABLE_BITS)).view(np.int64)


@functools.cache
def _classes() -> np.ndarray:
    """Return for each code point whether it is a letter, a digit or a combining mark [1114112] bool."""
    return np.array([unicodedata.category(chr(code))[0] in "LNM" for code in range(sys.maxunicode + 1)])


def codes_of(text: str) -> np.ndarray:
    """Return the code points [n] u32 of a text after NFKC and case folding. Everything but letters, digits and marks is WORD_BREAK."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.where(_classes()[codes], codes, WORD_BREAK)


def mix(values: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each value [n] u64 (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of an odd base, and of its inverse, modulo 2**64, each [count] u64."""
    bases = np.full((2, count), [[_BASE], [_INVERSE]], np.uint64)
    bases[:, 0] = 1
    return tuple(np.multiply.accumulate(bases, axis=1))


def _unit_hashes(codes, words):
    """Return the hash [n] u64 of each kept character, or of each word, as `_Text` makes them."""
    units = np.empty(len(codes), np.uint64)
    count, place = 0, 0
    total, power = np.uint64(0), np.uint64(1)
    for i in range(len(codes) + 1):
        if i < len(codes) and codes[i] != WORD_BREAK:
            value = np.uint64(codes[i])
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value ^= value >> np.uint64(31)
            if not words:
                units[count] = value
                count += 1
                continue
            total += value * power
            place += 1
            if place < 64:
                power *= np.uint64(_BASE)
        elif place:
            value = (total ^ (total >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            units[count] = value ^ (value >> np.uint64(31))
            count += 1
            place, total, power = 0, np.uint64(0), np.uint64(1)
    return units[:count]


def _has_window(units, length, present, hashes):
    """Return whether the hash of a window of `length` units is among sorted hashes. It equals that of `Windows`."""
    if len(units) < length:
        return False
    value, power = np.uint64(0), np.uint64(1)
    for k in range(length):
        value += units[k] * power
        if k < length - 1:
            power *= np.uint64(_BASE)
    for start in range(len(units) - length + 1):
        if start:
            value = (value - units[start - 1]) * np.uint64(_INVERSE) + units[start + length - 1] * power
        if present[np.int64(value >> np.uint64(64 - _TABLE_BITS))]:
            place = np.searchsorted(hashes, value)
            if place < len(hashes) and hashes[place] == value:
                return True
    return False
