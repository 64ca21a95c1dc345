"""One reader a format. Each yields `(place, fields)` for every record of one file: where it lies, and its values by name, or the
reason why it has none. What is wrong with a whole file is a ValueError; what is wrong with one record is data.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from plamo2_jax.data.documents import UnreadableRecord, place

Fields = Mapping[str, Any] | UnreadableRecord
Records = Iterator[tuple[str, Fields]]

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
SUFFIXES = (".jsonl", ".ndjson", ".txt", ".parquet", ".arrayrecord", ".array_record")
_ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ROWS_AT_ONCE = 1024


def format_of(path: Path) -> str | None:
    """The format by the file's name: "jsonl", "text", "parquet" or "arrayrecord"; None for any other."""
    name = path.name[: -len(path.suffix)] if path.suffix in COMPRESSIONS else path.name
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if name.endswith(".txt"):
        return "text"
    if path.suffix == ".parquet":
        return "parquet"
    return "arrayrecord" if _ARRAY_RECORD.search(path.name) else None


def read_jsonl(path: Path) -> Records:
    """JSON lines: an object a line; blank lines are no records. Compressed by .gz, .xz, .bz2 or .zst."""
    with _damage_is_named(path), open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                yield place(path, "line", number), _parse_json(line)


def read_text(path: Path, text_field: str) -> Records:
    """Plain text: the file is one document. Compressed by .gz, .xz, .bz2 or .zst."""
    with _damage_is_named(path), open_bytes(path) as file:
        data = file.read().removeprefix(_BYTE_ORDER_MARK)
    try:
        yield str(path), {text_field: data.decode("utf-8")}
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield place(path, "line", line), UnreadableRecord("invalid UTF-8", f"byte {error.start} of the file")


def read_parquet(path: Path, fields: tuple[str, ...]) -> Records:
    """Parquet: a row is a record. Row groups are read as a stream, and of the columns only `fields`, those that exist.

    Text columns come as bytes, so that one bad row does not take its row group with it.

    Raises:
        ValueError: the file is damaged, or has no column of the first of the fields.
    """
    import pyarrow.parquet

    with _damage_is_named(path), pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if fields[0] not in names:
            raise ValueError(f"{path} has no column {fields[0]!r}; its columns are {', '.join(names)}")
        columns = [name for name in fields if name in names]
        number = 0
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
            rows = zip(*(_column_values(batch.column(name)) for name in columns), strict=True)
            for row in rows:
                number += 1
                yield place(path, "row", number), dict(zip(columns, row, strict=True))


def read_array_record(path: Path) -> Records:
    """ArrayRecord: a record is a JSON object.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    with _damage_is_named(path):
        # The reader takes any file, and an empty one and one of another format alike have no records.
        path.open("rb").close()
        reader = ArrayRecordReader(str(path))
        try:
            total = reader.num_records()
            if not reader.ok() or total == 0:
                raise ValueError(f"{path} is damaged or not an ArrayRecord file: no record can be read")
            for start in range(0, total, _ROWS_AT_ONCE):
                indices = range(start, min(start + _ROWS_AT_ONCE, total))
                for number, record in zip(indices, reader.read(list(indices)), strict=True):
                    yield place(path, "record", number + 1), _parse_json(record)
        finally:
            reader.close()


def read_tfds(name: str, split: str, data_dir: Path | None) -> Records:
    """A prepared TensorFlow Datasets data set, by its data source: no TensorFlow is needed. Texts come as bytes.

    Args:
        name: "NAME", "NAME/CONFIG", "NAME/CONFIG:VERSION".
        split: such as "train" or "train[:10%]".
        data_dir: where it was prepared; None for the default of TFDS.

    Raises:
        ValueError: there is no such data set or split, it is not prepared, or not as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    import plamo2_jax.data.tfds_builder  # noqa: F401 - registers "plamo2_corpus"

    label = f"tfds:{name}:{split}"
    try:
        source = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    except KeyError:
        raise ValueError(
            f"{label} is not prepared in {data_dir or 'the default data_dir'}; prepare it with "
            f"tfds.builder({name!r}, data_dir=..., file_format='array_record').download_and_prepare()"
        ) from None
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{label} cannot be read: {str(error).splitlines()[0][:300]}") from None
    for index in range(len(source)):
        yield place(label, "record", index + 1), source[index]


def read_bundled(language: str, split: str) -> Records:
    """The corpus in the package: language "ja", "en" or "all", split "train", "heldout" or "all"."""
    from plamo2_jax.data import corpus

    for document in corpus.documents(None if language == "all" else language, split):
        yield document["id"], document


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed by its suffix."""
    with contextlib.ExitStack() as stack:
        if path.suffix == ".gz":
            import gzip

            yield stack.enter_context(gzip.open(path, "rb"))
        elif path.suffix == ".xz":
            import lzma

            yield stack.enter_context(lzma.open(path, "rb"))
        elif path.suffix == ".bz2":
            import bz2

            yield stack.enter_context(bz2.open(path, "rb"))
        elif path.suffix == ".zst":
            import pyarrow

            yield stack.enter_context(io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
        else:
            yield stack.enter_context(path.open("rb"))


@contextlib.contextmanager
def _damage_is_named(path: Path) -> Iterator[None]:
    """Errors of decompressors and file formats, which seldom say which file, as one sentence that does."""
    import lzma
    import zlib

    import pyarrow

    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (EOFError, OSError, RuntimeError, lzma.LZMAError, zlib.error, pyarrow.ArrowException) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(f"{path} is damaged or not of the format its name says: {detail}") from None


def _parse_json(data: bytes) -> Fields:
    try:
        record = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return UnreadableRecord("invalid UTF-8", f"byte {error.start} of the record")
    except RecursionError:
        return UnreadableRecord("not JSON", "nested too deeply")
    except ValueError as error:
        return UnreadableRecord("not JSON", str(error))
    if not isinstance(record, dict):
        return UnreadableRecord("not an object", f"JSON {type(record).__name__}")
    return record


def _column_values(column: Any) -> list[Any]:
    """Values of an Arrow column; strings as the bytes they are stored as, valid UTF-8 or not."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    elif pa.types.is_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.binary())
    return column.to_pylist()
