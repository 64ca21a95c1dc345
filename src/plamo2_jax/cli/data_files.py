"""Options for reading documents, reports of bad records, and writing JSON lines, for the `plamo2 data` commands."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from plamo2_jax.data.chunks import Chunk, read_chunks
from plamo2_jax.data.documents import Document, ReadReport, json_line
from plamo2_jax.data.sources import FieldNames, open_streams, read_documents
from plamo2_jax.data.workers import available_cores, ordered_map
from plamo2_jax.errors import PlamoError
from plamo2_jax.progress import tqdm
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options for reading documents."""

    text_field: str = "text"
    """Field or column that holds the text."""
    id_field: str = "id"
    """Field or column that holds an id, for messages."""
    language_field: str = "language"
    """Field or column that holds the language."""
    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets. Default: the default of TFDS."""
    max_bad_rate: float = 0.01
    """Share of records that may be bad (not UTF-8, not JSON, without text, too long) before reading fails."""
    max_record_mib: int = 64
    """Size in MiB above which a line, text file, row or record is bad. Memory use grows with it."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_record_mib <= 1024:
            raise PlamoError(f"--max-record-mib {self.max_record_mib} is not allowed: it must be between 1 and 1024")

    def documents(self, inputs: Iterable[str], report: ReadReport, **settings: Any) -> Iterator[Document]:
        """Yield the documents of all inputs; `settings` are further arguments of `read_documents`."""
        return read_documents(
            inputs,
            text_field=self.text_field,
            id_field=self.id_field,
            language_field=self.language_field,
            data_dir=self.data_dir,
            report=report,
            max_record_bytes=self.max_record_mib << 20,
            **settings,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions(ReadOptions):
    """Options for reading documents in worker processes."""

    workers: int | None = None
    """Number of processes that parse and process the input. Default: the number of cores. The output does not depend on it. A small input
    is processed in the main process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, workers=self.workers)

    def map_chunks(
        self, inputs: Iterable[str], function: Callable[[Chunk], Any], report: ReadReport, note: str
    ) -> Iterator[Any]:
        """Yield the results of a function for the chunks of all inputs, in order.

        Args:
            inputs: Inputs.
            function: Function that is pickled. Its results have the attribute `reading`, a PartReport.
            report: Report of reading to update.
            note: Title of the progress bar.
        """
        names = FieldNames(self.text_field, self.id_field, self.language_field)
        streams = open_streams(
            inputs, names, data_dir=self.data_dir, report=report, max_record_bytes=self.max_record_mib << 20
        )
        with tqdm(desc=note, unit="doc") as progress:
            for result in ordered_map(function, read_chunks(streams), self.workers or available_cores()):
                before = report.records
                report.add(result.reading)
                progress.update(report.records - before)
                yield result
        report.judge()


def print_bad(report: ReadReport) -> None:
    """Print on stderr how many records are bad, and the first ones verbatim."""
    print(report.summary(), file=sys.stderr)
    for record in report.first:
        print(f"  {record}", file=sys.stderr)
    if report.bad > len(report.first):
        print(f"  and {report.bad - len(report.first)} more", file=sys.stderr)


@contextlib.contextmanager
def open_jsonl(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file for lines of JSON. It appears if the block ends without an error."""
    check_jsonl(path)
    from plamo2_jax.storage import new_file

    with new_file(path) as partial, partial.open("wb") as raw, _compressed(raw, path.suffix) as file:
        yield file


@contextlib.contextmanager
def write_jsonl(path: Path) -> Iterator[Any]:
    """Yield a function that appends an object to the file and returns 1. The file appears if the block ends without an error."""
    with open_jsonl(path) as file:

        def write(record: dict[str, Any]) -> int:
            file.write(json_line(record))
            return 1

        yield write


def check_jsonl(path: Path) -> None:
    """Check that `write_jsonl` can write to a path; raise PlamoError otherwise."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.bz2")):
        raise PlamoError(f"{path} is not allowed: it must end in .jsonl, .jsonl.gz, .jsonl.xz or .jsonl.bz2")
    if not path.parent.is_dir():
        raise PlamoError(f"{path}: the folder {path.parent} does not exist. Create it, or choose another file")
    if path.is_dir():
        raise PlamoError(f"{path} is a folder: it must be a file name")


@contextlib.contextmanager
def _compressed(file: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    import bz2
    import gzip
    import lzma

    match suffix:
        case ".gz":
            # Without time and name, so that the same text gives the same bytes.
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
                yield compressed
        case ".xz":
            with lzma.open(file, "wb") as compressed:
                yield compressed
        case ".bz2":
            with bz2.open(file, "wb") as compressed:
                yield compressed
        case _:
            yield file
