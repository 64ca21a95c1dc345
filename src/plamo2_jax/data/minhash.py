"""MinHash signatures of texts and their bands, for finding near-duplicates.

The similarity of two texts is the Jaccard similarity of their sets of character n-grams. It is estimated by the share of equal values in
their signatures (Broder 1997). Two texts are compared only if all values of one band of their signatures are equal (locality-sensitive
hashing, Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from plamo2_jax.user_cache import compile_function
from plamo2_jax.validation import require

_STRETCH = 1 << 20  # Characters processed at once.


@dataclass(frozen=True)
class DedupConfig:
    """Settings of deduplication.

    Attributes:
        threshold: Smallest Jaccard similarity of the n-gram sets of near-duplicates.
        ngram: Number of characters in a shingle. 5 suits Japanese and, without white space, English.
        permutations: Number of MinHash values. The standard error of the estimate is about 1 / sqrt(permutations).
        seed: Random seed of the permutations.
    """

    threshold: float = 0.8
    ngram: int = 5
    permutations: int = 128
    seed: int = 1

    def __post_init__(self) -> None:
        require(self, "threshold", 0 < self.threshold <= 1, "in (0, 1]")
        require(self, "ngram", self.ngram >= 1, "at least 1")
        require(self, "permutations", 16 <= self.permutations <= 4096, "between 16 and 4096")


def squeeze(text: str) -> str:
    """Return the text without white space."""
    # In parts, because a list of all words takes many times the memory of the text.
    return "".join("".join(text[i : i + _STRETCH].split()) for i in range(0, len(text), _STRETCH))


def fingerprint(text: str) -> bytes:
    """Return a 16-byte hash of the text without white space."""
    return _digest(squeeze(text))


def _digest(squeezed: str) -> bytes:
    return hashlib.blake2b(squeezed.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingle_hashes(text: str, ngram: int) -> np.ndarray:
    """Return the sorted distinct hashes, [k] uint32, of the character n-grams of the text without white space."""
    codes = _codes(squeeze(text))
    if codes.size == 0:
        return np.zeros(0, np.uint32)
    ngram = min(ngram, codes.size)
    count = codes.size - ngram + 1
    stretches = []
    for start in range(0, count, _STRETCH):
        size = min(_STRETCH, count - start)
        value = np.zeros(size, np.uint64)
        for offset in range(start, start + ngram):  # Polynomial in a large odd base, modulo 2**64.
            value = value * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + size].astype(np.uint64)
        # The high half of a multiplicative hash is better mixed than the low half.
        value ^= value >> np.uint64(29)
        stretches.append(np.unique(((value * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)).astype(np.uint32)))
    return stretches[0] if len(stretches) == 1 else np.unique(np.concatenate(stretches))


def _codes(squeezed: str) -> np.ndarray:
    return np.frombuffer(squeezed.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class Signer:
    """Hashes of texts.

    Args:
        config: settings. The same settings give the same hashes on every machine.

    Attributes:
        bands: number of bands.
        rows: number of signature values in a band.
    """

    def __init__(self, config: DedupConfig):
        self.config = config
        self.bands, self.rows = bands_and_rows(config.threshold, config.permutations)
        # Affine permutations a h + b modulo 2**32. They are bijective, because a is odd.
        a, b = np.random.default_rng(config.seed).integers(0, 1 << 32, (2, config.permutations), np.uint32)
        self._a, self._b = a | np.uint32(1), b
        self._sign = compile_function(_sign)

    def __call__(self, text: str) -> tuple[bytes, np.ndarray]:
        """Return the fingerprint, 16 bytes, and the signature, [permutations] uint32.

        Texts without shingles have a signature of the largest value only.
        """
        squeezed = squeeze(text)
        signature = np.full(self.config.permutations, 0xFFFFFFFF, np.uint32)
        codes = _codes(squeezed)
        if codes.size:
            self._sign(codes, min(self.config.ngram, codes.size), self._a, self._b, signature)
        return _digest(squeezed), signature

    def band_hashes(self, signature: np.ndarray) -> np.ndarray:
        """Return the hashes [..., bands] uint64 of the bands of signatures [..., permutations]."""
        values = signature[..., : self.bands * self.rows].reshape(*signature.shape[:-1], self.bands, self.rows)
        found = np.zeros(values.shape[:-1], np.uint64)
        for row in range(self.rows):
            found = (found ^ values[..., row]) * np.uint64(0x9E3779B97F4A7C15)
            found ^= found >> np.uint64(29)
        return found


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the estimated Jaccard similarities [...] of signatures [..., permutations]."""
    return np.mean(a == b, axis=-1)


@functools.cache
def bands_and_rows(threshold: float, permutations: int) -> tuple[int, int]:
    """Return the number of bands and of rows with the smallest sum of false-positive and false-negative probabilities.

    Two texts of similarity s share a band with probability 1 - (1 - s^rows)^bands. The probabilities are integrated over s below and above
    the threshold, as datasketch does.
    """
    # Midpoints of 1,000 intervals.
    below = (np.arange(1000) + 0.5) / 1000 * threshold
    above = threshold + (np.arange(1000) + 0.5) / 1000 * (1 - threshold)

    def error(bands: int, rows: int) -> float:
        false_positive = np.mean(1 - (1 - below**rows) ** bands) * threshold
        false_negative = np.mean((1 - above**rows) ** bands) * (1 - threshold)
        return float(false_positive + false_negative)

    splits = [(bands, rows) for bands in range(1, permutations + 1) for rows in range(1, permutations // bands + 1)]
    return min(splits, key=lambda split: error(*split))


def _sign(codes, ngram, a, b, signature):
    """Lower each value of a signature to the smallest permuted hash of the n-grams. The hashes are equal to `shingle_hashes`."""
    for start in range(codes.size - ngram + 1):
        value = np.uint64(0)
        for offset in range(start, start + ngram):
            value = value * np.uint64(0x9E3779B97F4A7C15) + np.uint64(codes[offset])
        value ^= value >> np.uint64(29)
        shingle = np.uint32((value * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32))
        for k in range(signature.size):
            permuted = np.uint32(a[k] * shingle + b[k])
            if permuted < signature[k]:
                signature[k] = permuted
