"""`plamo2 data deduplicate`: remove duplicates from many files, in several processes, with restarts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from plamo2_jax.cli.data_files import ReadOptions, print_bad
from plamo2_jax.data.dedup_files import deduplicate_files
from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.files import find_files
from plamo2_jax.data.minhash import DedupConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import write_whole
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True)
class DeduplicateOptions(ReadOptions):
    """Remove exact and near-duplicates from many files. You can interrupt the command at any time; run it again to resume.

    The first document of each group of duplicates is kept, in the order of the files. Each input file becomes a file of JSON lines in the
    output folder. Ten million documents took 0.95 GB of memory in two processes; the work folder takes about 700 bytes per document.
    """

    input: tuple[str, ...]
    """Files (.jsonl, .txt, .parquet, .arrayrecord; the first two also .gz, .xz, .bz2, .zst), folders and "patterns"."""
    output: Path
    """Folder for the kept documents, 000000.jsonl, 000001.jsonl and so on, and report.json."""
    work: Path | None = None
    """Folder for hashes and finished steps. It is removed at the end. Default: OUTPUT.work."""
    processes: int = 1
    """Number of processes. The result does not depend on it."""
    similarity: float = 0.8
    """Smallest Jaccard similarity of the 5-character sets of near-duplicates."""
    keep_work: bool = False
    """Keep the work folder at the end."""


@dataclasses.dataclass(frozen=True)
class FileReader:
    """Reads a file with the command's options."""

    options: ReadOptions

    def __call__(self, path: Path, report: ReadReport) -> Iterator[Document]:
        return self.options.documents([str(path)], report)


def deduplicate(options: DeduplicateOptions) -> None:
    """Remove exact and near-duplicates from many files."""
    require_at_least(1, processes=options.processes)
    files: dict[Path, None] = {}
    for spec in options.input:
        if spec.startswith(("tfds:", "bundled:")):
            raise PlamoError(
                f"--input {spec} is not a file: it must be a file, a folder or a pattern. Export it to a file first"
            )
        files |= dict.fromkeys(path.resolve() for path in find_files(spec))
    report_path = options.output / "report.json"
    if report_path.exists():
        raise PlamoError(
            f"{options.output} already contains the results of a complete run: give the name of a new folder"
        )
    work = options.work or options.output.with_name(f"{options.output.name}.work")
    report, reading = deduplicate_files(
        list(files),
        options.output,
        work,
        FileReader(options),
        DedupConfig(threshold=options.similarity),
        processes=options.processes,
        max_bad_rate=options.max_bad_rate,
    )
    content = {"files": len(files), "reading": reading.to_json(), "deduplication": report.to_json()}
    write_whole(report_path, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    if not options.keep_work:
        shutil.rmtree(work)
    print_bad(reading)
    print(report.summary())
    print(options.output)
