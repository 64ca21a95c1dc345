"""Readers, one per file format.

A reader yields `(place, fields)` for each record of a file: file and line, and the values by name, or the JSON of the values, which
`good_records` parses. For a bad record, an UnreadableRecord with the reason takes the place of the values. A problem with the whole file
raises PlamoError.

A record of more than `limit` bytes is unreadable, and reading continues after it. Memory is bounded for any decompressed size.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.data.array_record import Chunk, read_chunks
from plamo2_jax.data.documents import ReadReport, UnreadableRecord
from plamo2_jax.data.files import find_files, format_of
from plamo2_jax.data.parquet import read_parquet
from plamo2_jax.data.streams import MAX_RECORD_BYTES, first_line, open_bytes, read_lines, report_damage, too_long
from plamo2_jax.data.values import plain_fields
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import json_problem

Fields = Mapping[str, Any] | bytes | UnreadableRecord
Records = Iterator[tuple[str, Fields]]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RECORDS_AT_ONCE = 1024
_CHUNK_BYTES = 256 << 20
"""Largest decompressed size of a chunk of several records, in bytes."""
_JSON_VALUES = 2_000_000
"""Largest number of values in a record. A value with three bytes of JSON, such as `[],`, takes up to 72 bytes of memory, and a value with a
key up to 300."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def read_records(
    spec: str | Path, report: ReadReport, *, limit: int = MAX_RECORD_BYTES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(place, fields)` of the objects in a file, a folder or a pattern of JSON lines, Parquet or ArrayRecord files.

    Values are converted to JSON values by `plain_fields`. The caller counts the good records.

    Args:
        spec: File, folder or pattern to read.
        report: Report that counts bad records and limits their share.
        limit: Largest size of a record in bytes. A larger record is bad.

    Raises:
        PlamoError: There is no such file, it has another format, or it is damaged.
        TooManyBadRecordsError: The share of bad records exceeds the limit of `report`.
    """
    files = find_files(spec, report)
    for file in files:
        if format_of(file) == "text":
            raise PlamoError(
                f"{file} is plain text: records must be JSON lines (.jsonl), Parquet (.parquet) or ArrayRecord (.arrayrecord)"
            )
    for file in files:
        yield from good_records(open_records(file, limit=limit), report)


def open_records(
    file: Path, *, limit: int = MAX_RECORD_BYTES, columns: tuple[str, ...] | None = None, text_field: str | None = None
) -> Records:
    """Return the records of a file, by its format. The file is opened when the first record is read.

    Args:
        file: File to read.
        limit: Largest size of a record in bytes. A larger record is unreadable.
        columns: Columns of Parquet files to read; None: all. Records of other formats are read completely.
        text_field: Name of the field for the text of a plain text file; a Parquet file must have this column.
    """
    match format_of(file):
        case "jsonl":
            return read_jsonl(file, limit)
        case "text":
            return read_text(file, text_field or "text", limit)
        case "parquet":
            return read_parquet(file, limit, columns, text_field)
        case _:
            return read_array_record(file, limit)


def good_records(
    records: Records, report: ReadReport, texts: tuple[str, ...] = (), *, count_changes: bool = True
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parse the records that are JSON, count the unreadable ones in `report`, and yield the others with JSON values.

    Args:
        records: Records of a reader.
        report: Report that counts bad records, and losses in good records.
        texts: Names of fields whose bytes must be UTF-8.
        count_changes: Whether to count losses in good records.

    Raises:
        TooManyBadRecordsError: The share of bad records exceeds the limit of `report`.
    """
    for where, fields in records:
        try:
            plain = parse_record(fields, report.changes if count_changes else None, texts)
        except UnreadableRecord as error:
            report.count_bad(where, error)
            continue
        yield where, plain


def parse_record(fields: Fields, changes: Counter[str] | None = None, texts: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a record of a reader with JSON values.

    Args:
        fields: A record of a reader: JSON, fields, or the reason why it is unreadable.
        changes: Counter of losses, such as numbers that JSON does not have; None: not counted.
        texts: Names of fields whose bytes must be UTF-8.

    Raises:
        UnreadableRecord: The record is unreadable.
    """
    if isinstance(fields, bytes):
        fields = _parse_json(fields)
    if isinstance(fields, UnreadableRecord):
        raise fields
    return plain_fields(fields, changes, texts)


def read_jsonl(path: Path, limit: int = MAX_RECORD_BYTES) -> Records:
    """Read JSON lines: one object per line, without blank lines. The file may be compressed (.gz, .xz, .bz2, .zst)."""
    with report_damage(path), open_bytes(path) as file:
        for number, line in read_lines(file, limit):
            where = f"{path}, line {number}"
            # Concatenated files have a byte order mark in the middle.
            if isinstance(line, UnreadableRecord) or (line := line.removeprefix(_BYTE_ORDER_MARK)).strip():
                yield where, line


def read_text(path: Path, text_field: str, limit: int = MAX_RECORD_BYTES) -> Records:
    """Read plain text as one document. The file may be compressed (.gz, .xz, .bz2, .zst). Windows line ends become newlines."""
    with report_damage(path), open_bytes(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        yield str(path), too_long("text", limit)
        return
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        yield str(path), {text_field: data.decode("utf-8").replace("\r\n", "\n")}
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield f"{path}, line {line}", UnreadableRecord("invalid UTF-8", f"byte {error.start} of the file")


def read_array_record(path: Path, limit: int = MAX_RECORD_BYTES) -> Records:
    """Read an ArrayRecord file, whose records are JSON objects.

    Raises:
        PlamoError: The file is damaged or has another format.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    with report_damage(path):
        # The library opens any file. A file of another format then has no records, like an empty one.
        path.open("rb").close()
        reader = ArrayRecordReader(str(path))
        try:
            total = reader.num_records()
            if not reader.ok() or total <= 0:
                raise PlamoError(f"{path} is damaged or not an ArrayRecord file: no record can be read")
            for indices, readable in _bounded_ranges(path, total, limit):
                found = reader.read(list(indices)) if readable else [None] * len(indices)
                for number, record in zip(indices, found, strict=True):
                    too_large = record is None or len(record) > limit
                    yield f"{path}, record {number + 1}", too_long("record", limit) if too_large else record
        finally:
            reader.close()


def read_tfds(name: str, split: str, data_dir: Path | None, limit: int = MAX_RECORD_BYTES) -> Records:
    """Read a prepared TensorFlow Datasets data set through its data source, which needs no TensorFlow. Texts are bytes.

    Args:
        name: "NAME", "NAME/CONFIG" or "NAME/CONFIG:VERSION".
        split: Split, such as "train" or "train[:10%]".
        data_dir: Folder in which it was prepared; None: the default of TFDS.
        limit: Largest size of a record in bytes. A larger record is unreadable.

    Raises:
        PlamoError: There is no such data set or split, or it is not prepared as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    import plamo2_jax.data.tfds_builder  # noqa: F401 - registers "plamo2_corpus"

    label = f"tfds:{name}:{split}"
    try:
        source = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    except KeyError:
        raise PlamoError(
            f"{label} is not prepared in {data_dir or 'the default data_dir'}. Prepare it with "
            f"tfds.builder({name!r}, data_dir=..., file_format='array_record').download_and_prepare()"
        ) from None
    # On damaged files, the parsers of JSON, protobuf and features in TFDS raise various errors.
    except Exception as error:
        raise PlamoError(f"{label} cannot be read: {first_line(error)}") from None
    with report_damage(Path(label)):
        for index, readable in zip(range(len(source)), _readable(source, limit), strict=False):
            fields = _tfds_record(source, index, limit) if readable else too_long("record", limit)
            yield f"{label}, record {index + 1}", fields


def _tfds_record(source: Any, index: int, limit: int) -> Fields:
    try:
        fields = source[index]
    except Exception as error:
        return UnreadableRecord("not decodable", first_line(error))
    size = sum(len(value) for value in fields.values() if isinstance(value, str | bytes))
    return too_long("record", limit) if size > limit else fields


def _readable(source: Any, limit: int) -> Iterator[bool]:
    """Yield, for each record of a TFDS data source, whether it may be read: its chunk must not be too large when decompressed."""
    from tensorflow_datasets.core import FileFormat
    from tensorflow_datasets.core.data_sources.base import file_instructions

    if source.dataset_info.file_format is not FileFormat.ARRAY_RECORD:
        yield from itertools.repeat(True, len(source))
        return
    for part in file_instructions(source.dataset_info, source.split):
        chunks = read_chunks(Path(part.filename), part.examples_in_shard)
        records = (_chunk_allowed(chunk, limit) for chunk in chunks for _ in range(chunk.records))
        yield from itertools.islice(records, part.skip, part.skip + part.take)


def _chunk_allowed(chunk: Chunk, limit: int) -> bool:
    return chunk.bytes <= (limit if chunk.records == 1 else max(limit, _CHUNK_BYTES))


def _bounded_ranges(path: Path, total: int, limit: int) -> Iterator[tuple[range, bool]]:
    """Yield ranges of records to read at once, and whether they may be read: their chunk must not be too large when decompressed."""
    start = end = size = 0
    for chunk in read_chunks(path, total):
        allowed = _chunk_allowed(chunk, limit)
        full = size + chunk.bytes > limit or end + chunk.records - start > _RECORDS_AT_ONCE
        if end > start and (full or not allowed):
            yield range(start, end), True
            start, size = end, 0
        end += chunk.records
        size += chunk.bytes
        if not allowed:
            yield range(start, end), False
            start, size = end, 0
    if end > start:
        yield range(start, end), True


def _parse_json(data: bytes) -> dict[str, Any] | UnreadableRecord:
    try:
        if _values_at_most(data) > _JSON_VALUES:
            return UnreadableRecord("too many values", f"more than {_JSON_VALUES:,} values in one record")
        record = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return UnreadableRecord("invalid UTF-8", f"byte {error.start} of the record")
    except RecursionError:
        return UnreadableRecord("not JSON", "nested too deeply")
    except UnreadableRecord as error:
        return error
    except ValueError as error:
        return UnreadableRecord("not JSON", json_problem(error))
    if not isinstance(record, dict):
        return UnreadableRecord("not an object", f"JSON {type(record).__name__}")
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise UnreadableRecord("repeated field", f"the field {name[:80]!r} more than once in one object")
    return values


def _values_at_most(data: bytes) -> int:
    """Return an upper bound on the number of values in a JSON text, from its brackets and commas."""
    bound = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if bound > _JSON_VALUES:
        data = _STRING.sub(b"", data)
        bound = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    return bound
