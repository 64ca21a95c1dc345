"""Removal of exact and near-duplicates from a stream of documents.

Exact duplicates differ only in white space. Near-duplicates have a high estimated Jaccard similarity of their sets of character n-grams
(`data.minhash`). The n-grams are of characters because Japanese has no spaces. The first document of each group of duplicates is kept. The
result depends only on the input order and the settings. For many files, `data.dedup_files` does the same in several processes, and can be
restarted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from plamo2_jax.data.duplicates import (
    BLOCK,
    Block,
    Duplicates,
    block_folder,
    estimated_similarity,
    find_duplicates,
    write_block,
)
from plamo2_jax.data.minhash import DedupConfig, Signer
from plamo2_jax.progress import tqdm

_SHOWN = 20
_IN_MEMORY = 64 << 20  # Bytes of documents that are not written to a temporary file.


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
    exact: int = 0
    near: int = 0
    chars_exact: int = 0
    chars_near: int = 0
    first: list[Duplicate] = field(default_factory=list)
    """The first twenty exact duplicates, then the first twenty near-duplicates."""

    def count(self, found: Duplicates, characters: np.ndarray) -> None:
        """Add the counts of all documents; `characters` are their lengths, [n]."""
        removed = ~found.kept
        exact, near = removed & found.exact, removed & ~found.exact
        self.documents_in += len(removed)
        self.documents_out += int(np.count_nonzero(found.kept))
        self.exact += int(np.count_nonzero(exact))
        self.near += int(np.count_nonzero(near))
        self.chars_exact += int(characters[exact].sum(dtype=np.int64))
        self.chars_near += int(characters[near].sum(dtype=np.int64))

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the removed characters and the first twenty duplicates of each kind as JSON."""
        return {
            "documents": {"in": self.documents_in, "out": self.documents_out},
            "exact": {"documents": self.exact, "characters": self.chars_exact},
            "near": {"documents": self.near, "characters": self.chars_near},
            "first": [dataclasses.asdict(duplicate) for duplicate in self.first],
        }

    def summary(self) -> str:
        """Return a line for a log."""
        return (
            f"deduplication kept {self.documents_out} of {self.documents_in} documents; "
            f"exact duplicates {self.exact}, near-duplicates {self.near}"
        )


def examples(found: Duplicates) -> np.ndarray:
    """Return the numbers of the first removed texts of each kind, for the report."""
    removed = ~found.kept
    kinds = (removed & found.exact, removed & ~found.exact)
    return np.concatenate([np.flatnonzero(kind)[:_SHOWN] for kind in kinds])


def shown_duplicates(found: Duplicates, blocks: Sequence[Block], names: dict[int, str]) -> list[Duplicate]:
    """Return the entries of the report, given the ids of the texts in `examples` and of the texts that they repeat."""
    numbers = examples(found)
    if not numbers.size:
        return []
    shares = estimated_similarity(blocks, numbers, found.first[numbers])
    return [
        Duplicate(names[int(i)], names[int(found.first[i])], 1.0 if found.exact[i] else float(share))
        for i, share in zip(numbers, shares, strict=True)
    ]


def deduplicate(
    documents: Iterable[dict],
    config: DedupConfig | None = None,
    report: DedupReport | None = None,
    total: int | None = None,
    progress: bool = True,
    folder: Path | None = None,
) -> Iterator[dict]:
    """Yield the documents that are not duplicates of an earlier one, in order, after reading all documents.

    Memory: 64 MiB of documents, one block of hashes, 8 bytes a document and the hashes of one part of one band. The rest is in temporary
    files.

    Args:
        documents: JSON objects with "text", and "id" for the report (their index if there is none).
        config: Settings; None: the defaults.
        report: Statistics to update.
        total: Number of documents, for the progress bar.
        progress: Show a progress bar on stderr.
        folder: Folder for temporary files; None: the system's.
    """
    report = report if report is not None else DedupReport()
    signer = Signer(config or DedupConfig())
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".dedup-") as hashes,
        tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=folder) as spool,
    ):

        def texts() -> Iterator[str]:
            for document in tqdm(documents, "deduplicate", total, unit="doc", disable=not progress):
                spool.write(json.dumps(document).encode() + b"\n")
                yield document["text"]

        blocks = _write_blocks(Path(hashes), texts(), signer)
        found = find_duplicates(blocks, signer)
        if blocks:
            report.count(found, np.concatenate([block.load("characters") for block in blocks]))
        shown = examples(found)
        named = {*shown.tolist(), *found.first[shown].tolist()}
        names = {i: str(document.get("id", i)) for i, document in enumerate(_read(spool)) if i in named}
        report.first += shown_duplicates(found, blocks, names)
        kept = found.kept
        for i, document in enumerate(_read(spool)):
            if kept[i]:
                yield document


def _read(spool: IO[bytes]) -> Iterator[dict]:
    spool.seek(0)
    return map(json.loads, spool)


def duplicates_of(texts: Sequence[str], config: DedupConfig) -> list[int]:
    """Return for each text the number of the first text that it repeats; its own number if it repeats none."""
    signer = Signer(config)
    with tempfile.TemporaryDirectory(prefix=".dedup-") as hashes:
        return find_duplicates(_write_blocks(Path(hashes), iter(texts), signer), signer).first.tolist()


def _write_blocks(folder: Path, texts: Iterator[str], signer: Signer) -> list[Block]:
    blocks: list[Block] = []
    while block := write_block(block_folder(folder, 0, len(blocks)), itertools.islice(texts, BLOCK), signer):
        blocks.append(block)
    return blocks
