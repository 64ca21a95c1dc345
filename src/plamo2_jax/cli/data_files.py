"""Options for reading documents, reports of bad records, and writing JSON lines, for the `plamo2 data` commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from plamo2_jax.data.documents import Document, ReadReport
from plamo2_jax.data.sources import read_documents
from plamo2_jax.errors import PlamoError


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
    """Folder of prepared TensorFlow Datasets; left out, the default of TFDS."""
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


def print_bad(report: ReadReport) -> None:
    """Print on stderr how many records are bad, and the first ones verbatim."""
    print(report.summary(), file=sys.stderr)
    for record in report.first:
        print(f"  {record}", file=sys.stderr)
    if report.bad > len(report.first):
        print(f"  and {report.bad - len(report.first)} more", file=sys.stderr)


@contextlib.contextmanager
def write_jsonl(path: Path) -> Iterator[Any]:
    """Yield a function that appends an object to the file and returns 1. The file appears if the block ends without an error."""
    check_jsonl(path)
    from plamo2_jax.storage import new_file

    with new_file(path) as partial, partial.open("wb") as raw, _compressed(raw, path.suffix) as file:

        def write(record: dict[str, Any]) -> int:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
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
