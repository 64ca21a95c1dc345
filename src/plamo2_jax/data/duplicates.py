"""Search for duplicates among any number of texts, with hashes in files.

Hashes are written in blocks. For each band, the texts with equal hashes are compared, and similar ones are joined by union-find. So
duplicates are the connected components of "similar", and the first text of a component is kept. Memory: 8 bytes a text, and the hashes of
one part of one band at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from plamo2_jax.data.minhash import Signer, similarity
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import new_folder
from plamo2_jax.user_cache import compile_function

BLOCK = 1 << 16
"""Largest number of texts in a block."""
_PART = 1 << 23  # Largest number of hashes in memory, 256 MiB with their texts' numbers and the memory of sorting.
_PAIRS = 1 << 15  # Pairs whose signatures are in memory, 32 MiB with 128 permutations.
_ROUNDS = 64  # Bounds the time for texts that share a hash by accident.


@dataclasses.dataclass(frozen=True)
class Block:
    """Hashes of consecutive texts, as memory-mapped files in a folder."""

    folder: Path

    def load(self, name: str) -> np.ndarray:
        """Return an array: signatures [n, permutations] uint32, keys [bands + 1, n] uint64 sorted in each row, order [bands + 1, n] uint32
        with the text of each key, digests [n] uint64, or characters [n] uint32. The last row of keys is for exact duplicates.
        """
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.load("characters"))


@dataclasses.dataclass(frozen=True)
class Hashes:
    """Hashes of n texts in memory."""

    digests: np.ndarray
    """Fingerprints, [n, 2] uint64."""
    signatures: np.ndarray
    """[n, permutations] uint32."""
    characters: np.ndarray
    """Lengths of the texts, [n] uint32."""

    def __len__(self) -> int:
        return len(self.characters)


def hash_texts(texts: Iterable[str], signer: Signer) -> Hashes:
    """Return the hashes of texts."""
    prints, signatures, characters = [], [], []
    for text in texts:
        digest, signature = signer(text)
        prints.append(digest)
        signatures.append(signature)
        characters.append(len(text))
    return Hashes(
        np.frombuffer(b"".join(prints), np.uint64).reshape(-1, 2),
        np.stack(signatures) if signatures else np.zeros((0, signer.config.permutations), np.uint32),
        np.array(characters, np.uint32),
    )


def write_block(folder: Path, texts: Iterable[str], signer: Signer) -> Block | None:
    """Write the hashes of at most `BLOCK` texts. The folder appears if all files are complete. Return None if there is no text."""
    hashes = hash_texts(texts, signer)
    if not len(hashes):
        return None
    with new_folder(folder) as partial:
        save_block(partial, hashes, signer)
    return Block(folder)


def save_block(folder: Path, hashes: Hashes, signer: Signer) -> Block:
    """Write hashes into an existing folder, without the care that a restart needs."""
    keys = np.concatenate([signer.band_hashes(hashes.signatures), hashes.digests[:, :1]], axis=1).T
    order = np.argsort(keys, axis=1, kind="stable").astype(np.uint32)
    arrays = {
        "signatures": hashes.signatures,
        "keys": np.take_along_axis(keys, order, axis=1),
        "order": order,
        "digests": hashes.digests[:, 1],
        "characters": hashes.characters,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return Block(folder)


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The duplicates among n texts."""

    first: np.ndarray
    """Number of the kept text that each text repeats, [n] int64; its own number if it is kept."""
    exact: np.ndarray
    """Whether an earlier text differs only in white space, [n] bool."""

    @property
    def kept(self) -> np.ndarray:
        """Whether each text is kept, [n] bool."""
        return self.first == np.arange(len(self.first))


def find_duplicates(blocks: Sequence[Block], signer: Signer, on_band: Callable[[], None] | None = None) -> Duplicates:
    """Find the duplicates among the texts of all blocks, numbered in the order of the blocks.

    Args:
        blocks: blocks that were written with the same settings.
        signer: the settings.
        on_band: called after each of the `bands + 1` comparisons.
    """
    offsets = np.cumsum([0, *map(len, blocks)])
    n = int(offsets[-1])
    parent, exact = np.arange(n), np.zeros(n, bool)
    parts = max(1, -(-n // _PART))
    edges = [round((1 << 64) * part / parts) for part in range(parts + 1)]
    for band in range(signer.bands + 1):
        equal = _Equal(blocks, offsets) if band == signer.bands else _Similar(blocks, offsets, signer.config.threshold)
        for lowest, end in itertools.pairwise(edges):
            keys, texts = _read_part(blocks, offsets, band, lowest, end)
            pairs = group_pairs(keys, texts, equal)
            compile_function(_join)(parent, pairs)
            if band == signer.bands:
                exact[pairs[:, 1]] = True
        if on_band is not None:
            on_band()
    # A root has the smallest number of its component, so every parent is final when it is read.
    compile_function(_flatten)(parent)
    return Duplicates(parent, exact)


def _read_part(
    blocks: Sequence[Block], offsets: np.ndarray, band: int, lowest: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of one band in [lowest, end), sorted, and the numbers of their texts, ascending for equal hashes."""
    keys, texts = [], []
    for block, offset in zip(blocks, offsets, strict=False):
        row = block.load("keys")[band]
        start = np.searchsorted(row, np.uint64(lowest))
        stop = len(row) if end >= 1 << 64 else np.searchsorted(row, np.uint64(end))
        keys.append(np.array(row[start:stop]))
        texts.append(block.load("order")[band, start:stop] + np.int64(offset))
    if not keys:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    found, numbers = np.concatenate(keys), np.concatenate(texts)
    order = np.argsort(found, kind="stable")
    return found[order], numbers[order]


def group_pairs(
    keys: np.ndarray, texts: np.ndarray, alike: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return pairs (earlier text, later text) that connect the texts with equal keys that are alike.

    Each text is compared with the first of its group. Those that differ from it are compared with the first of the rest, and so on.

    Args:
        keys: sorted keys, [n].
        texts: number of the text of each key, [n], ascending for equal keys.
        alike: returns for two arrays of numbers, [m] and [m], whether the texts are alike, [m].

    Returns:
        Pairs [k, 2].
    """
    found = []
    for _ in range(_ROUNDS):
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        rest = np.flatnonzero(~first)
        if not rest.size:
            break
        heads = texts[np.flatnonzero(first)[np.cumsum(first)[rest] - 1]]
        close = alike(heads, texts[rest])
        found.append(np.stack([heads[close], texts[rest[close]]], axis=1))
        keys, texts = keys[rest[~close]], texts[rest[~close]]
    return np.concatenate(found).astype(np.int64) if found else np.zeros((0, 2), np.int64)


@dataclasses.dataclass(frozen=True)
class _Equal:
    """Whether texts have the same fingerprint. Their keys, the first halves, are equal."""

    blocks: Sequence[Block]
    offsets: np.ndarray

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _gather(self.blocks, self.offsets, "digests", a) == _gather(self.blocks, self.offsets, "digests", b)


@dataclasses.dataclass(frozen=True)
class _Similar:
    """Whether the estimated similarity of texts reaches the threshold."""

    blocks: Sequence[Block]
    offsets: np.ndarray
    threshold: float

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found = [np.zeros(0, bool)]
        for start in range(0, len(a), _PAIRS):
            found.append(self.estimate(a[start : start + _PAIRS], b[start : start + _PAIRS]) >= self.threshold)
        return np.concatenate(found)

    def estimate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        signatures = (_gather(self.blocks, self.offsets, "signatures", some) for some in (a, b))
        return similarity(*signatures)


def estimated_similarity(blocks: Sequence[Block], a: Iterable[int], b: Iterable[int]) -> np.ndarray:
    """Return the estimated similarities of pairs of texts, [m]."""
    offsets = np.cumsum([0, *map(len, blocks)])
    return _Similar(blocks, offsets, 0.0).estimate(np.fromiter(a, np.int64), np.fromiter(b, np.int64))


def _gather(blocks: Sequence[Block], offsets: np.ndarray, name: str, texts: np.ndarray) -> np.ndarray:
    """Return the rows of an array of all blocks, in the order of `texts`."""
    homes = np.searchsorted(offsets, texts, side="right") - 1
    found = None
    for home in np.unique(homes):
        # Each block is mapped only while it is read, because pages of a mapping count as memory of the process.
        rows = blocks[home].load(name)
        places = np.flatnonzero(homes == home)
        if found is None:
            found = np.empty((len(texts), *rows.shape[1:]), rows.dtype)
        found[places] = rows[texts[places] - offsets[home]]
    if found is None:
        raise PlamoError("there are no texts to compare")
    return found


def join_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the texts in pairs [k, 2] int64, ascending, and the first text of the component of each, [n] and [n]."""
    numbers, places = np.unique(pairs, return_inverse=True)
    parent = np.arange(len(numbers))
    # Ranks have the order of the numbers, so the smallest rank is the first text.
    compile_function(_join)(parent, places.reshape(-1, 2))
    compile_function(_flatten)(parent)
    return numbers, numbers[parent]


def _join(parent, pairs):
    """Join the components of pairs. The smallest number is the root."""
    for k in range(len(pairs)):
        a, b = pairs[k, 0], pairs[k, 1]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


def _flatten(parent):
    """Replace every parent by the root."""
    for i in range(len(parent)):
        parent[i] = parent[parent[i]]


def block_folder(parent: Path, file: int, block: int) -> Path:
    """Return the folder of a block: number of the input file, and number of the block within the file."""
    return parent / f"{file:06d}-{block:06d}"
