"""Read Parquet rows with bounded memory.

The size of a Parquet file does not bound its decompressed size: a page of a few KB can expand to GB, and a dictionary entry of 1 MiB can be
the value of a million rows. Arrow allocates the sizes in page headers, so the headers are checked first (`parquet_pages`). Texts are read
as dictionary indices, and a batch of rows is divided until its values are small enough (`_rows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from plamo2_jax.data.documents import UnreadableRecord
from plamo2_jax.data.parquet_pages import Column, read_pages, read_row_groups
from plamo2_jax.data.streams import report_damage, too_long
from plamo2_jax.errors import PlamoError

_ROWS_AT_ONCE = 1024
_PAGES = 256 << 20
"""Largest sum over the columns of the decompressed size of the largest page of a column, in bytes."""
_RATIO = 20
"""A page that expands to at most this multiple of its compressed size is allowed at any size: a large file may have large pages."""
_NESTED_VALUES = 32_000_000
"""Largest number of values in a page of a nested column. All of them may belong to one row."""
_DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY, _DICTIONARY = 6, 7, (2, 8)
"""Encodings, https://parquet.apache.org/docs/file-format/data-pages/encodings/."""


def read_parquet(
    path: Path, limit: int, columns: tuple[str, ...] | None = None, required: str | None = None
) -> Iterator[tuple[str, dict[str, Any] | UnreadableRecord]]:
    """Yield the rows of a file as `(place, values by column)`.

    Args:
        path: The file.
        limit: Largest size of a row's values, in bytes. A larger row is a bad record.
        columns: Columns to read, if they exist; None: all.
        required: Column that must exist.

    Raises:
        PlamoError: The file is damaged, lacks the required column, has two columns of one name, or its decompressed pages are too large.
    """
    import pyarrow.parquet

    with report_damage(path), path.open("rb") as raw, pyarrow.parquet.ParquetFile(path) as file:
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        names = file.schema_arrow.names
        if required is not None and required not in names:
            shown = ", ".join(name[:40] for name in names[:10]) + (", ..." if len(names) > 10 else "")
            raise PlamoError(
                f"{path} has no column {required!r}: its columns are {shown}. Name one of them with --text-field"
            )
        columns = tuple(dict.fromkeys(name for name in (columns or names) if name in names))
        _require_distinct(path, [field for field in file.schema_arrow if field.name in columns])
        groups = read_row_groups(raw)
        if len(groups) != file.metadata.num_row_groups:
            raise OSError(f"its footer has {len(groups)} row groups, or {file.metadata.num_row_groups}")
        rows = [file.metadata.row_group(number).num_rows for number in range(len(groups))]
        plans = [
            _plan(path, raw, group, number, count, columns, limit)
            for number, (group, count) in enumerate(zip(groups, rows, strict=True), start=1)
        ]
    row = 0
    # Arrow cannot read these encodings as indices.
    expanded = set().union(*(plan.delta for plan in plans))
    texts = [name for name in texts if name not in expanded]
    # Without pre_buffer, pages are read one by one.
    options = {"read_dictionary": texts, "pre_buffer": False, "buffer_size": 1 << 20}
    with report_damage(path), pyarrow.parquet.ParquetFile(path, **options) as file:
        for number, plan in enumerate(plans):
            for batch in file.iter_batches(plan.rows_at_once(expanded), row_groups=[number], columns=list(columns)):
                for values in _rows(batch, columns, limit):
                    row += 1
                    yield f"{path}, row {row}", values


def _require_distinct(path: Path, fields: list[Any], column: str | None = None) -> None:
    """Check that columns, or the fields of a nested column, have different names."""
    import pyarrow as pa

    what = "columns" if column is None else f"fields of the column {column[:80]!r}"
    for name, count in Counter(field.name for field in fields).items():
        if count > 1:
            raise PlamoError(f"{path} has {count} {what} named {name[:80]!r}: names must be unique. Rename one of them")
    for field in fields:
        if pa.types.is_nested(field.type):
            children = [field.type.field(i) for i in range(field.type.num_fields)]
            _require_distinct(path, children, field.name if column is None else column)


class _Plan(NamedTuple):
    """Largest number of rows of a row group to read at once, by column: as indices into a dictionary, and as values."""

    as_indices: dict[str, int]
    as_values: dict[str, int]
    delta: set[str]
    """Columns that cannot be read as indices."""

    def rows_at_once(self, expanded: set[str]) -> int:
        """Return the smallest number over all columns, if the columns in `expanded` are read as values."""
        rows = (self.as_values[name] if name in expanded else rows for name, rows in self.as_indices.items())
        return max(1, min(rows, default=_ROWS_AT_ONCE))


def _plan(
    path: Path, file: IO[bytes], group: list[Column], number: int, rows: int, columns: tuple[str, ...], limit: int
) -> _Plan:
    """Plan how to read row group `number`, which has `rows` rows. Raise PlamoError if its decompressed pages are too large."""
    plan, pages = _Plan({}, {}, set()), 0
    budget = max(_PAGES, 4 * limit)
    for column in group:
        if column.path.split(".")[0] not in columns and column.path not in columns:
            continue
        where = f"{path}, row group {number}, column {column.path[:80]!r}"
        largest = entry = values = 0
        as_indices = as_values = _ROWS_AT_ONCE
        for page in read_pages(file, column):
            if "." in column.path and page.values > _NESTED_VALUES:
                raise PlamoError(
                    f"{where}: a page holds {page.values:,} values: at most {_NESTED_VALUES:,} are allowed. "
                    "Write the file with smaller pages"
                )
            if page.decompressed > budget and page.decompressed > _RATIO * page.compressed:
                raise PlamoError(
                    f"{where}: a page of {page.compressed:,} bytes decompresses to {page.decompressed:,}: at "
                    f"most {budget:,} are allowed. Write the file with smaller pages"
                )
            largest = max(largest, page.decompressed if page.decompressed > _RATIO * page.compressed else 0)
            if page.is_dictionary:
                entry = page.decompressed
                continue
            values += page.values
            average = page.decompressed // max(page.values, 1)
            # A value may be an entry of the dictionary, or as large as the whole page before it.
            largest_value = {_DELTA_BYTE_ARRAY: page.decompressed, **dict.fromkeys(_DICTIONARY, entry)}.get(
                page.encoding, 0
            )
            as_indices = min(as_indices, limit // max(average, 1))
            as_values = min(as_values, limit // max(average, largest_value, 1))
            if page.encoding in (_DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY):
                plan.delta.add(column.path)
        if "." in column.path:
            # A page of equal numbers has few bytes, but a list of them takes 8 bytes each.
            as_indices = min(as_indices, limit * max(rows, 1) // (8 * max(values, 1)))
            as_values = min(as_values, as_indices)
        plan.as_indices[column.path] = as_indices
        plan.as_values[column.path] = as_values
        pages += largest
    if pages > budget:
        raise PlamoError(
            f"{path}, row group {number}: its columns decompress to {pages:,} bytes at a time: at most "
            f"{budget:,} are allowed. Write the file with smaller pages, or without the columns that are not "
            "needed"
        )
    return plan


def _rows(batch: Any, columns: tuple[str, ...], limit: int) -> Iterator[dict[str, Any] | UnreadableRecord]:
    """Yield the rows of an Arrow batch. Batches with large values are halved."""
    size = sum(_expanded_bytes(column) for column in batch.columns)
    if batch.num_rows > 1 and size > limit:
        half = batch.num_rows // 2
        yield from _rows(batch.slice(0, half), columns, limit)
        yield from _rows(batch.slice(half), columns, limit)
        return
    if size > limit:
        yield too_long("row", limit)
        return
    values = []
    try:
        for name in columns:
            values.append(_values(batch.column(name)))
    except UnicodeDecodeError as error:
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                yield from _rows(batch.slice(row, 1), columns, limit)
            return
        yield UnreadableRecord("invalid UTF-8", f"byte {error.start} of the field {name!r}")
        return
    yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _values(column: Any) -> list[Any]:
    """Return the values of an Arrow column."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type) and len(column.dictionary) <= len(column):
        # Each entry is converted once, even if many rows have it.
        entries = column.dictionary.to_pylist()
        return [None if index is None else entries[index] for index in column.indices.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError) as error:
        # Arrow has nanoseconds and the year 10,000, Python does not.
        try:
            return column.cast(pa.string()).to_pylist()
        except pa.ArrowException:
            raise OSError(f"values of the type {column.type} cannot be read: {error}") from None


def _expanded_bytes(array: Any) -> int:
    """Return the bytes of the values of an Arrow array after dictionary entries are expanded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        if not _is_bytes(kind.value_type):
            return 32 * len(array)
        counts = pc.value_counts(array.indices.drop_null())
        lengths = pc.binary_length(array.dictionary.take(counts.field("values"))).cast(pa.int64())
        return pc.sum(pc.multiply(pc.fill_null(lengths, 0), counts.field("counts"))).as_py() or 0
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        array = array.cast(pa.large_binary())
        kind = array.type
    if _is_bytes(kind):
        return pc.sum(pc.binary_length(array).cast(pa.int64())).as_py() or 0
    # Memory of the Python objects that hold the values.
    if pa.types.is_struct(kind):
        return 64 * len(array) + sum(_expanded_bytes(child) for child in array.flatten())
    if pa.types.is_map(kind):
        used = slice(array.offsets[0].as_py(), array.offsets[-1].as_py())
        return 64 * len(array) + _expanded_bytes(array.keys[used]) + _expanded_bytes(array.items[used])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return 64 * len(array) + _expanded_bytes(array.flatten())
    return 32 * len(array)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
