"""Shared code of the `plamo2 data` commands: reading options, reports of bad records, and writing JSON lines."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.data.documents import ReadReport


def read_report(max_bad_rate: float, *, quiet: bool = False) -> ReadReport:
    """Return a report that allows this share of bad records."""
    from plamo2_jax.data.documents import ReadReport

    return ReadReport(max_bad_rate=max_bad_rate, quiet=quiet)


def record_bytes(mib: int) -> int:
    """Return the size limit of a record in bytes.

    Raises:
        ValueError: `mib` is below 1 or above 1024.
    """
    if not 1 <= mib <= 1024:
        raise PlamoError(f"--max-record-mib {mib} is not allowed: it must be between 1 and 1024")
    return mib << 20


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
    """Check that `write_jsonl` can write to a path; raise ValueError otherwise."""
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
