"""Copying: the share of a text that is copied literally from its source."""

from __future__ import annotations

import numpy as np

from plamo2_jax.data.minhash import squeeze

_BASE = np.uint64(0x9E3779B97F4A7C15)


def longest_copy(text: str, source: str) -> int:
    """Return the number of characters of the longest window that both texts contain, without white space."""
    a, b = _Hashes(text), _Hashes(source)
    shortest, longest = 0, min(a.length, b.length)
    # A window of n characters contains windows of every smaller length, so binary search applies.
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if np.isin(a.windows(middle), b.windows(middle)).any():
            shortest = middle
        else:
            longest = middle - 1
    return shortest


def copied_share(text: str, source: str, window: int) -> float:
    """Return the share of the characters of a text that lie in a window of the source, without white space.

    Args:
        text: the text.
        source: the text that it may copy from.
        window: number of consecutive characters that count as copied.
    """
    a, b = _Hashes(text), _Hashes(source)
    if window > min(a.length, b.length):
        return 0.0
    starts = np.isin(a.windows(window), b.windows(window))
    # The number of copied windows that cover a character is a difference of running sums.
    marks = np.zeros(a.length + 1, np.int64)
    marks[: len(starts)] += starts
    marks[window : window + len(starts)] -= starts
    return float(np.mean(np.cumsum(marks)[:-1] > 0))


class _Hashes:
    """Polynomial hashes, modulo 2**64, of the beginnings of a text without white space."""

    def __init__(self, text: str):
        codes = np.frombuffer(squeeze(text).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        self.length = len(codes)
        # hash(i) = sum of mix(code j) * base^j for j < i. Mixing makes sums of few small codes distinct.
        mixed = (codes + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        self._powers = np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(self.length, _BASE)]))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * self._powers[:-1])])

    def windows(self, length: int) -> np.ndarray:
        """Return the hashes [n] u64 of all windows of `length` characters. They do not depend on the place of the window."""
        starts = self.length - length + 1
        # Multiply by a power that is the same at every place afterwards: base^(largest - start).
        sums = self._sums[length:] - self._sums[:starts]
        return sums * _inverse_powers(starts)


def _inverse_powers(count: int) -> np.ndarray:
    """Return base^-i modulo 2**64 for i < count, [count] u64. The base is odd, so it has an inverse."""
    inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
    return np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(max(0, count - 1), inverse)]))
