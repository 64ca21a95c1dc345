"""Read the files of a benchmark. The first bad record is an error: a benchmark with omitted items has another score."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.data.files import find_files
from plamo2_jax.data.readers import UnreadableRecord, open_records, parse_record
from plamo2_jax.errors import PlamoError

BUNDLED = Path(__file__).parent / "data"
"""Folder with the benchmark data that is part of this package."""
MAX_CSV_BYTES = 64 << 20
"""Largest CSV file, in bytes. The largest file of JMMLU and MMLU has less than 1 MB."""


def sha256(files: Iterable[Path]) -> str:
    """Return the sha256 of the contents of files, in order, as hexadecimal digits. For one file this is the sha256 of the file."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            while part := source.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def data_identity(path: Path) -> dict[str, Any]:
    """Return the name of a file or folder that `read_rows` reads, and the sha256 of its files, for a task's provenance."""
    return {"data": path.name, "data_sha256": sha256(find_files(path))}


def read_rows(path: Path, fields: Mapping[str, type | tuple[type, ...]]) -> list[tuple[str, dict[str, Any]]]:
    """Read the records of a file of JSON lines (also compressed) or Parquet, or of all such files of a folder.

    Args:
        path: file or folder.
        fields: fields that each record must have, with their types.

    Returns:
        Place (file and line) and fields of each record.

    Raises:
        PlamoError: there is no such file, it has no record, or a record is malformed or lacks a field.
    """
    rows = []
    for file in find_files(path):
        for where, found in open_records(file):
            try:
                row = parse_record(found)
            except UnreadableRecord as error:
                raise PlamoError(f"{where}: {error}: each line must be a JSON object") from None
            for name, kind in fields.items():
                check_field(where, row, name, kind)
            rows.append((where, row))
    if not rows:
        raise PlamoError(f"{path} has no records: at least one is needed")
    return rows


def check_field(where: str, row: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> None:
    """Check that a record has a field of a type.

    Raises:
        PlamoError: it has not. The message names the place, the field, its type and the allowed types.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    value = row.get(name)
    if type(value) not in kinds:
        problem = f"is {type(value).__name__}" if name in row else "is missing"
        allowed = " or ".join(
            {str: "a text", int: "an integer", list: "a list", dict: "an object"}.get(one, one.__name__)
            for one in kinds
        )
        others = "" if name in row else f" (the record has {', '.join(sorted(map(str, row)))[:200] or 'no fields'})"
        raise PlamoError(f"{where}: the field {name!r} {problem}{others}: it must be {allowed}")


def read_csv(file: Path, columns: int, expected: str) -> list[tuple[str, list[str]]]:
    """Read a CSV file (UTF-8 with or without a byte order mark) whose rows all have the same number of fields. Empty rows are skipped.

    Args:
        file: the file.
        columns: number of fields of each row.
        expected: description of the fields for error messages.

    Returns:
        Place (file and line) and fields of each row. A row may span several lines; the place is its first line.

    Raises:
        PlamoError: the file is too large or not UTF-8, or a row has another number of fields.
    """
    try:
        with file.open("rb") as source:
            content = source.read(MAX_CSV_BYTES + 1)
        if len(content) > MAX_CSV_BYTES:
            raise PlamoError(f"{file} is too large: at most {MAX_CSV_BYTES:,} bytes are allowed")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise PlamoError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PlamoError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}): save the file as UTF-8"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, line = [], 1
    try:
        for row in reader:
            where, line = f"{file}, line {line}", reader.line_num + 1
            if not row:
                continue
            if len(row) != columns:
                raise PlamoError(f"{where}: the row has {len(row)} fields, not {columns}: {expected}")
            rows.append((where, row))
    except csv.Error as error:
        raise PlamoError(f"{file}, line {line}: {error}: {expected}") from None
    return rows
