"""Tokenize documents into a folder of shards in the format of `plamo2_jax.data.shards`."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax.data.contamination import ContaminationReport
from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.shards import (
    FORMAT,
    LENGTHS,
    MANIFEST,
    SHARD_NAME,
    WRITER_OPTIONS,
    ShardError,
    TokenizedDocument,
    encode_record,
)
from plamo2_jax.errors import PlamoError
from plamo2_jax.progress import tqdm
from plamo2_jax.storage import new_folder
from plamo2_jax.tokenizer.tokenizer import Tokenizer

TOKENS_PER_SHARD = 1 << 26
_DOCUMENTS_PER_TASK = 64


def write_shards(
    documents: Iterable[Document], tokenizer: Tokenizer, folder: str | Path, **options: Any
) -> dict[str, Any]:
    """Tokenize documents into one folder of shards. Return its manifest. `options` are the keyword arguments of `write_sides`."""
    return write_sides(documents, tokenizer, {"": Path(folder)}, lambda document: "", **options)[""]


def write_sides(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folders: Mapping[str, Path],
    side_of: Callable[[Document], str],
    *,
    report: ReadReport | None = None,
    contamination: ContaminationReport | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    processes: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Tokenize documents into several folders of shards in one pass, such as both sides of a split, in order.

    Args:
        documents: Documents to write; read once, as a stream.
        tokenizer: Tokenizer; its fingerprint is written into the manifests. Control strings in text stay text.
        folders: Folder to create for each side. It appears complete or not at all.
        side_of: Function that returns the side of a document.
        report: Report of the reader of `documents`, for the manifests.
        contamination: Report of the removal of contaminated documents from `documents`, for the manifests.
        tokens_per_shard: Number of tokens after which a new shard is started.
        processes: Number of worker processes that tokenize; 0: tokenize in this process. The result is the same.
        overwrite: Replace folders that hold shards.
        progress: Show a progress bar.

    Returns:
        The manifest of each side.

    Raises:
        ShardError: A folder exists, or a side has no document. Then no folder is written.
    """
    if tokens_per_shard < 1 or processes < 0:
        raise PlamoError(
            f"tokens_per_shard={tokens_per_shard} and processes={processes} are not allowed: they must be at least 1 and 0"
        )
    for folder in folders.values():
        _check_target(folder, overwrite)
    manifests = {}
    with contextlib.ExitStack() as stack:
        partial = {side: stack.enter_context(new_folder(folder, replace=overwrite)) for side, folder in folders.items()}
        writers = {side: _Writer(path, tokens_per_shard) for side, path in partial.items()}
        sides: collections.deque[str] = collections.deque()

        def stream() -> Iterator[Document]:
            for document in documents:
                sides.append(side_of(document))
                yield document

        names = " and ".join(folder.name for folder in folders.values())
        bar = stack.enter_context(tqdm(desc=f"tokenize {names}", unit="B", unit_scale=True, disable=not progress))
        for language, document in _tokenize(stream(), tokenizer, processes):
            writers[sides.popleft()].add(language, document)
            bar.update(document.bytes)
        bar.close()
        for side, writer in writers.items():
            writer.close_shard()
            if not writer.lengths:
                needed = "each side of the split needs at least one" if len(folders) > 1 else "at least one is needed"
                raise ShardError(f"there is no document for {folders[side]}: {needed}")
            manifests[side] = writer.write_manifest(tokenizer, report, contamination)
    return manifests


class _Writer:
    """Writer of shards that counts documents, tokens and bytes."""

    def __init__(self, folder: Path, tokens_per_shard: int):
        self._folder = folder
        self._tokens_per_shard = tokens_per_shard
        self._open: Any = None
        self._in_shard = {"documents": 0, "tokens": 0}
        self.shards: list[dict[str, Any]] = []
        self.languages: dict[str, dict[str, int]] = {}
        self.lengths: list[int] = []

    def add(self, language: str, document: TokenizedDocument) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        if self._open is None:
            self._open = ArrayRecordWriter(str(self._folder / SHARD_NAME.format(len(self.shards))), WRITER_OPTIONS)
        self._open.write(encode_record(document))
        count = len(document.ids)
        self.lengths.append(count)
        totals = self.languages.setdefault(language, {"documents": 0, "tokens": 0, "bytes": 0})
        for name, value in (("documents", 1), ("tokens", count), ("bytes", document.bytes)):
            totals[name] += value
        self._in_shard["documents"] += 1
        self._in_shard["tokens"] += count
        if self._in_shard["tokens"] >= self._tokens_per_shard:
            self.close_shard()

    def close_shard(self) -> None:
        if self._open is None:
            return
        self._open.close()
        self._open = None
        path = self._folder / SHARD_NAME.format(len(self.shards))
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=32)).hexdigest()
        written = {"size": path.stat().st_size, "blake2b": checksum}
        self.shards.append({"name": path.name, **self._in_shard, **written})
        self._in_shard = {"documents": 0, "tokens": 0}

    def write_manifest(
        self, tokenizer: Tokenizer, report: ReadReport | None, contamination: ContaminationReport | None
    ) -> dict[str, Any]:
        """Write the other files of the folder, and return the manifest."""
        totals = self.languages.values()
        manifest = {
            "format": FORMAT,
            "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
            **{name: sum(counts[name] for counts in totals) for name in ("documents", "tokens", "bytes")},
            "languages": dict(sorted(self.languages.items())),
            "shards": self.shards,
            "reading": None if report is None else report.to_json(),
            **({} if contamination is None else {"contamination": contamination.to_json()}),
        }
        np.save(self._folder / LENGTHS, np.array(self.lengths, np.uint32), allow_pickle=False)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (self._folder / MANIFEST).write_text(text, encoding="utf-8")
        return manifest


def _tokenize(
    documents: Iterable[Document], tokenizer: Tokenizer, processes: int
) -> Iterator[tuple[str, TokenizedDocument]]:
    """Yield (language, tokenized document) in the order of `documents`."""
    if processes == 0:
        for document in documents:
            yield _tokenize_one(document, tokenizer)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Not forked: this process may hold threads (of JAX, of Grain) that a fork would leave in the middle of something.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker, (tokenizer,)) as pool:
        pending: collections.deque = collections.deque()
        stream = iter(documents)
        while task := list(itertools.islice(stream, _DOCUMENTS_PER_TASK)):
            pending.append(pool.submit(_tokenize_task, task))
            # Bounded, so that a fast reader does not fill the memory.
            if len(pending) > 4 * processes:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _tokenize_one(document: Document, tokenizer: Tokenizer) -> tuple[str, TokenizedDocument]:
    return document.language, TokenizedDocument(tokenizer.encode(document.text), len(document.text.encode("utf-8")))


_worker_tokenizer: Tokenizer | None = None


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _tokenize_task(documents: list[Document]) -> list[tuple[str, TokenizedDocument]]:
    return [_tokenize_one(document, _worker_tokenizer) for document in documents]


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise ShardError(f"{folder} exists. Choose another folder, or replace it with --overwrite (overwrite=True)")
    # Delete only folders that this module wrote.
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        raise ShardError(
            f"{folder} exists, and is not a folder of shards (it has no {MANIFEST}), so it is not overwritten. "
            "Choose another folder"
        )
