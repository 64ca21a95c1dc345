"""Removal of exact and near-duplicates from a stream of documents.

Exact duplicates differ only in white space. Near-duplicates have a high estimated Jaccard similarity of their sets of character n-grams
(MinHash, Broder 1997; locality-sensitive hashing by datasketch). The n-grams are of characters because Japanese has no spaces. The first
document of each group of duplicates is kept. The result depends only on the input order and the seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plamo2_jax.progress import tqdm
from plamo2_jax.validation import require

_STRETCH = 1 << 20  # characters processed at once
_MAX_PER_UPDATE = 8192  # shingles hashed at once; bounds memory at 128 * 8192 * 8 bytes for texts of any length


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
        require(self, "permutations", self.permutations >= 16, "at least 16")


@dataclass(frozen=True)
class Duplicate:
    """One removed document: its id, the id of the kept one it repeats, and their similarity (1.0 if exact)."""

    id: str
    duplicate_of: str
    similarity: float


@dataclass
class DedupReport:
    """Statistics of deduplication."""

    documents_in: int = 0
    documents_out: int = 0
    exact: list[Duplicate] = field(default_factory=list)
    near: list[Duplicate] = field(default_factory=list)
    chars_exact: int = 0
    chars_near: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the removed characters and the first twenty duplicates of each kind as JSON."""
        return {
            "documents": {"in": self.documents_in, "out": self.documents_out},
            "exact": {"documents": len(self.exact), "characters": self.chars_exact},
            "near": {"documents": len(self.near), "characters": self.chars_near},
            "first": [dataclasses.asdict(duplicate) for duplicate in (*self.exact[:20], *self.near[:20])],
        }

    def summary(self) -> str:
        """Return a line for a log."""
        return (
            f"deduplication kept {self.documents_out} of {self.documents_in} documents; "
            f"exact duplicates {len(self.exact)}, near-duplicates {len(self.near)}"
        )


def squeeze(text: str) -> str:
    """Return the text without white space."""
    # In parts, because a list of all words takes many times the memory of the text.
    return "".join("".join(text[i : i + _STRETCH].split()) for i in range(0, len(text), _STRETCH))


def fingerprint(text: str) -> bytes:
    """Return a 16-byte hash of the text without white space."""
    return hashlib.blake2b(squeeze(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingle_hashes(text: str, ngram: int) -> np.ndarray:
    """Return the sorted distinct hashes, [k] uint32, of the character n-grams of the text without white space."""
    codes = np.frombuffer(squeeze(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if codes.size == 0:
        return np.zeros(0, np.uint32)
    ngram = min(ngram, codes.size)
    count = codes.size - ngram + 1
    stretches = []
    for start in range(0, count, _STRETCH):
        size = min(_STRETCH, count - start)
        value = np.zeros(size, np.uint64)
        for offset in range(start, start + ngram):  # polynomial in a large odd base, modulo 2**64
            value = value * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + size].astype(np.uint64)
        # The high half of a multiplicative hash is better mixed than the low half.
        value ^= value >> np.uint64(29)
        stretches.append(np.unique(((value * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)).astype(np.uint32)))
    return stretches[0] if len(stretches) == 1 else np.unique(np.concatenate(stretches))


def minhash(text: str, config: DedupConfig):
    """Return the datasketch `MinHash` of a text's shingles."""
    from datasketch import MinHash

    # The shingles are already hashed, all at once in NumPy, so the hash function per item is the identity.
    sketch = MinHash(num_perm=config.permutations, seed=config.seed, hashfunc=int)
    hashes = shingle_hashes(text, config.ngram)
    for start in range(0, hashes.size, _MAX_PER_UPDATE):
        sketch.update_batch(hashes[start : start + _MAX_PER_UPDATE].tolist())
    return sketch


def deduplicate(
    documents: Iterable[dict],
    config: DedupConfig | None = None,
    report: DedupReport | None = None,
    total: int | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Yield the documents that are not duplicates of an earlier one, in order.

    Memory: 16 bytes and one MinHash (8 * permutations bytes) per kept document. Documents without text are only tested for exact copies.

    Args:
        documents: Dicts with "text", and "id" for the report (their index if there is none).
        config: Settings; None: the defaults.
        report: Statistics to update while the iterator runs.
        total: Number of documents, for the progress bar.
        progress: Show a progress bar on stderr.
    """
    from datasketch import MinHashLSH

    config = config or DedupConfig()
    report = report if report is not None else DedupReport()
    exact: dict[bytes, str] = {}
    sketches: dict[str, object] = {}
    index = MinHashLSH(threshold=config.threshold, num_perm=config.permutations)
    for number, document in enumerate(tqdm(documents, "deduplicate", total, unit="doc", disable=not progress)):
        report.documents_in += 1
        name = str(document.get("id", number))
        print_ = fingerprint(document["text"])
        if print_ in exact:
            report.exact.append(Duplicate(name, exact[print_], 1.0))
            report.chars_exact += len(document["text"])
            continue
        sketch = minhash(document["text"], config)
        # Ids may repeat in a user's data, so the index uses its own keys.
        key = f"{number}:{name}"
        if not sketch.is_empty():
            similar = [(sketch.jaccard(sketches[other]), other) for other in index.query(sketch)]
            best = max(similar, default=(0.0, ""))
            if best[0] >= config.threshold:
                report.near.append(Duplicate(name, best[1].partition(":")[2], float(best[0])))
                report.chars_near += len(document["text"])
                continue
            index.insert(key, sketch, check_duplication=False)
            sketches[key] = sketch
        exact[print_] = name
        report.documents_out += 1
        yield document
