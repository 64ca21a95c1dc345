"""Removal of exact and near-duplicates from a stream of documents.

Exact duplicates differ only in white space. Near-duplicates have a high estimated Jaccard similarity of their sets of character n-grams
(`data.minhash`). The n-grams are of characters because Japanese has no spaces. The first document of each group of duplicates is kept. The
result depends only on the input order and the settings. For many files, `data.dedup_files` does the same in several processes, and can be
restarted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax.data.duplicates import (
    BLOCK,
    Block,
    Duplicates,
    Hashes,
    block_folder,
    estimated_similarity,
    find_duplicates,
    hash_texts,
    save_block,
    write_block,
)
from plamo2_jax.data.minhash import DedupConfig, Signer
from plamo2_jax.progress import tqdm

_SHOWN = 20
_IN_MEMORY = 64 << 20  # Bytes of documents that are not written to a temporary file.
_DOCUMENTS_AT_ONCE, _CHARACTERS_AT_ONCE = 1024, 1 << 20


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


class LineDeduplicator(contextlib.ExitStack):
    """Removes the lines of duplicates: lines and the hashes of their texts go in, and the lines to keep come out. Use it in a with block.

    Memory: 64 MiB of lines, one block of hashes, 8 bytes a text and the hashes of one part of one band. The rest is in temporary files.

    Args:
        config: Settings.
        folder: Folder for temporary files; None: the system's.
    """

    def __init__(self, config: DedupConfig, folder: Path | None = None):
        super().__init__()
        self.signer = Signer(config)
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".dedup-")))
        lines = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=folder)  # noqa: SIM115 - closed with this object
        self._lines = self.enter_context(lines)
        self._blocks: list[Block] = []
        self._hashes: list[Hashes] = []

    def add(self, lines: bytes, hashes: Hashes) -> None:
        """Append lines, each with a newline at its end, and the hashes of their texts."""
        self._lines.write(lines)
        self._hashes.append(hashes)
        if sum(map(len, self._hashes)) >= BLOCK:
            self._save()

    def kept(self, report: DedupReport, id_of: Callable[[int, bytes], str]) -> Iterator[bytes]:
        """Compare all texts, update the report, and yield the lines of those that repeat no earlier text, in order.

        Args:
            report: Statistics to update.
            id_of: Returns the id for the report, given the number of a line and the line.
        """
        self._save()
        found = find_duplicates(self._blocks, self.signer)
        if self._blocks:
            report.count(found, np.concatenate([block.load("characters") for block in self._blocks]))
        shown = examples(found)
        named = {*shown.tolist(), *found.first[shown].tolist()}
        names = {i: id_of(i, line) for i, line in enumerate(self._read(max(named, default=-1) + 1)) if i in named}
        report.first += shown_duplicates(found, self._blocks, names)
        yield from itertools.compress(self._read(len(found.kept)), found.kept.tolist())

    def _read(self, count: int) -> Iterator[bytes]:
        self._lines.seek(0)
        return itertools.islice(self._lines, count)

    def _save(self) -> None:
        """Write the hashes in memory as a block."""
        hashes, self._hashes = [one for one in self._hashes if len(one)], []
        if not hashes:
            return
        folder = block_folder(self._folder, 0, len(self._blocks))
        folder.mkdir()
        names = (field.name for field in dataclasses.fields(Hashes))
        together = Hashes(*(np.concatenate([getattr(one, name) for one in hashes]) for name in names))
        del hashes
        self._blocks.append(save_block(folder, together, self.signer))


def deduplicate(
    documents: Iterable[dict],
    config: DedupConfig | None = None,
    report: DedupReport | None = None,
    total: int | None = None,
    progress: bool = True,
    folder: Path | None = None,
) -> Iterator[dict]:
    """Yield the documents that are not duplicates of an earlier one, in order, after reading all documents.

    Memory: see `LineDeduplicator`.

    Args:
        documents: JSON objects with "text", and "id" for the report (their index if there is none).
        config: Settings; None: the defaults.
        report: Statistics to update.
        total: Number of documents, for the progress bar.
        progress: Show a progress bar on stderr.
        folder: Folder for temporary files; None: the system's.
    """
    report = report if report is not None else DedupReport()
    with LineDeduplicator(config or DedupConfig(), folder) as lines:
        stream = iter(tqdm(documents, "deduplicate", total, unit="doc", disable=not progress))
        while some := _take(stream):
            texts = (document["text"] for document in some)
            lines.add(
                b"".join(json.dumps(document).encode() + b"\n" for document in some), hash_texts(texts, lines.signer)
            )
        yield from map(json.loads, lines.kept(report, lambda i, line: str(json.loads(line).get("id", i))))


def _take(documents: Iterator[dict]) -> list[dict]:
    """Return the next documents, with about a million characters."""
    taken, size = [], 0
    for document in itertools.islice(documents, _DOCUMENTS_AT_ONCE):
        taken.append(document)
        size += len(document["text"])
        if size >= _CHARACTERS_AT_ONCE:
            break
    return taken


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
