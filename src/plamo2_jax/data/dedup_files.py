"""Deduplication of many files in several processes, which can be interrupted and restarted at any time.

A work folder holds the hashes of each block of documents, the result of the comparison, and the settings. Finished blocks and files are not
made again. Memory: one block of hashes a process, and 8 bytes a document (see `data.duplicates`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax.data.dedup import DedupReport, examples, shown_duplicates
from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.duplicates import BLOCK, Block, Duplicates, block_folder, find_duplicates, write_block
from plamo2_jax.data.minhash import DedupConfig, Signer
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.progress import tqdm
from plamo2_jax.storage import lock_folder, new_file, write_whole

Reader = Callable[[Path, ReadReport], Iterator[Document]]
"""Returns the documents of a file. It is sent to other processes, so it must be picklable."""
_CONFIG, _DONE, _FIRST = "config.json", "{:06d}.json", "first.npy"


def deduplicate_files(
    files: Sequence[Path],
    output: Path,
    work: Path,
    read: Reader,
    config: DedupConfig | None = None,
    *,
    processes: int = 1,
    max_bad_rate: float = 0.01,
) -> tuple[DedupReport, ReadReport]:
    """Write the documents that are not duplicates of an earlier one, a file `OUTPUT/NNNNNN.jsonl` for each input file, in order.

    Args:
        files: Input files.
        output: Folder for the files. It must be empty, or hold files of an interrupted run with the same work folder.
        work: Folder for hashes and finished steps. It is about 700 bytes a document and can be deleted afterwards.
        read: Reader of a file.
        config: Settings; None: the defaults.
        processes: Number of processes that read, hash and write.
        max_bad_rate: Largest share of records of a file that may be bad.

    Raises:
        PlamoError: The work folder belongs to other files or settings, or an input cannot be read.
    """
    config = config or DedupConfig()
    work.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    with lock_folder(work), _Pool(processes) as pool:
        _check_settings(work, output, files, config)
        jobs = [(i, path, work, read, config) for i, path in enumerate(files)]
        counts = list(pool.map(_hash_file, jobs, "hash"))
        reading = _reading(counts, max_bad_rate)
        reading.judge()
        blocks = [
            Block(block_folder(work, i, number))
            for i, count in enumerate(counts)
            for number in range(-(-count["documents"] // BLOCK))
        ]
        found = _search(work, blocks, config)
        offsets = np.cumsum([0, *(count["documents"] for count in counts)]).tolist()
        shown = examples(found)
        named = sorted({*shown.tolist(), *found.first[shown].tolist()})
        writes = [
            (path, output / f"{i:06d}.jsonl", work, read, start, stop, [n for n in named if start <= n < stop])
            for i, (path, start, stop) in enumerate(zip(files, offsets, offsets[1:], strict=False))
        ]
        names: dict[int, str] = {}
        for some in pool.map(_write_file, writes, "write"):
            names |= some
    report = DedupReport()
    if blocks:
        report.count(found, np.concatenate([block.load("characters") for block in blocks]))
    report.first += shown_duplicates(found, blocks, names)
    return report, reading


def _check_settings(work: Path, output: Path, files: Sequence[Path], config: DedupConfig) -> None:
    """Write the settings into a new work folder, or compare them with the settings there."""
    settings = {
        "settings": dataclasses.asdict(config),
        "files": [[os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "output": os.path.abspath(output),
    }
    path = work / _CONFIG
    if path.exists():
        if parse_json(path.read_bytes(), str(path)) != settings:
            raise PlamoError(
                f"{work} belongs to a run with other files or settings: give another work folder, or delete "
                "this one to start again"
            )
        return
    if any(not path.name.startswith(".") for path in work.iterdir()):
        # The command removes the folder at the end. Hidden files are the lock and the partial files of an interrupted start.
        raise PlamoError(f"{work} contains other files: give the name of a new folder for --work")
    if any(output.iterdir()):
        raise PlamoError(f"{output} is not empty: give the name of a new folder")
    write_whole(path, json.dumps(settings, indent=2).encode() + b"\n")


def _hash_file(job: tuple[int, Path, Path, Reader, DedupConfig]) -> Mapping[str, Any]:
    """Hash the documents of one file, without the blocks that exist. Return the number of documents and the report of reading."""
    number, path, work, read, config = job
    done = work / _DONE.format(number)
    if done.exists():
        return parse_json(done.read_bytes(), str(done))
    # A single file may have a larger share of bad records.
    signer, report = Signer(config), ReadReport(1.0, quiet=True)
    texts = (document.text for document in read(path, report))
    count = 0
    for block in itertools.count():
        some = itertools.islice(texts, BLOCK)
        folder = block_folder(work, number, block)
        if folder.exists():
            # The documents of a finished block are read but not hashed.
            size = sum(1 for _ in some)
            if size != len(Block(folder)):
                raise PlamoError(f"{path} has changed since {work} was made: delete the work folder to start again")
        else:
            written = write_block(folder, some, signer)
            size = 0 if written is None else len(written)
        count += size
        if size < BLOCK:
            break
    content = {"documents": count, "reading": report.to_json()}
    write_whole(done, json.dumps(content).encode() + b"\n")
    return content


def _search(work: Path, blocks: Sequence[Block], config: DedupConfig) -> Duplicates:
    """Find the duplicates, or read what an earlier start found."""
    path = work / _FIRST
    if not path.exists():
        signer = Signer(config)
        with tqdm(total=signer.bands + 1, desc="compare", unit="band") as progress:
            found = find_duplicates(blocks, signer, progress.update)
        with new_file(path) as partial, partial.open("wb") as file:
            # The sign marks exact duplicates.
            np.save(file, np.where(found.exact, ~found.first, found.first), allow_pickle=False)
    stored = np.load(path, allow_pickle=False)
    return Duplicates(np.where(stored < 0, ~stored, stored), stored < 0)


def _write_file(job: tuple[Path, Path, Path, Reader, int, int, list[int]]) -> dict[int, str]:
    """Write the kept documents of one file, if that is not done. Return the ids of the documents for the report."""
    path, target, work, read, start, stop, named = job
    if target.exists() and not named:
        return {}
    stored = np.load(work / _FIRST, mmap_mode="r", allow_pickle=False)[start:stop]
    kept = stored == np.arange(start, stop)
    wanted, names, read_to = set(named), {}, start
    with new_file(target) as partial, partial.open("wb") as file:
        for i, document in enumerate(read(path, ReadReport(1.0, quiet=True))):
            if start + i in wanted:
                names[start + i] = document.id
            if i >= len(kept):
                raise PlamoError(f"{path} has changed since {work} was made: delete the work folder to start again")
            if kept[i]:
                file.write(json.dumps(document.to_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n")
            read_to = start + i + 1
        if read_to < stop:
            raise PlamoError(f"{path} has changed since {work} was made: delete the work folder to start again")
    return names


def _reading(counts: Sequence[Mapping[str, Any]], max_bad_rate: float) -> ReadReport:
    """Return the sum of the files' reports."""
    total = ReadReport(max_bad_rate, quiet=True)
    for count in counts:
        one = count["reading"]
        total.records += one["records"]
        total.reasons.update(one["reasons"])
        total.first += one["first"][: max(0, 20 - len(total.first))]
        total.changes.update(one.get("changes", {}))
    return total


class _Pool:
    """Runs jobs in processes, or in this process if there is one only."""

    def __init__(self, processes: int):
        self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) if processes > 1 else None

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any], note: str) -> Iterator[Any]:
        """Yield the results in the order of the jobs."""
        if self._pool is None:
            yield from map(function, tqdm(jobs, note, unit="file"))
            return
        futures: list[Future] = [self._pool.submit(function, job) for job in jobs]
        try:
            for future in tqdm(futures, note, unit="file"):
                yield future.result()
        except BrokenProcessPool:
            raise PlamoError(
                "a worker process was killed, probably because the memory was full. Run the command again "
                "with fewer --processes; it resumes"
            ) from None
