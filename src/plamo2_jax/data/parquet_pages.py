"""Sizes of the pages of a Parquet file, from its footer and the pages' headers, before any page is decompressed.

Both are structs of Apache Thrift (https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift). pyarrow does not
show page headers, and the footer of a damaged file can end its process.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

_MAGIC = b"PAR1"
_MAX_HEADER = 16 << 20


class Page(NamedTuple):
    """Compressed and decompressed bytes of a page, its number of values and their encoding; -1 if the header does not state it."""

    compressed: int
    decompressed: int
    values: int
    encoding: int
    is_dictionary: bool


class Column(NamedTuple):
    """Place of a column in one row group: its dotted path, and the first byte and the end of its pages."""

    path: str
    start: int
    end: int


def read_row_groups(file: IO[bytes]) -> list[list[Column]]:
    """Read the columns of each row group.

    Raises:
        OSError: The footer is damaged.
    """
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if size < 12 or end[4:] != _MAGIC or length > size - 12:
        raise OSError("the footer is missing")
    file.seek(size - 8 - length)
    try:
        footer, _ = _Thrift(file.read(length)).read_struct()
    except IndexError:
        raise OSError("the footer is truncated") from None
    groups = [[_column(chunk) for chunk in _list(_struct(group).get(1))] for group in _list(footer.get(4))]
    for column in itertools.chain(*groups):
        if not 0 <= column.start <= column.end <= size:
            raise OSError(f"its footer puts a column at bytes {column.start} to {column.end}, outside the file")
    return groups


def read_pages(file: IO[bytes], column: Column) -> Iterator[Page]:
    """Yield the pages of a column.

    Raises:
        OSError: A header is damaged.
    """
    position = column.start
    while position < column.end:
        # A header holds the smallest and largest value of its page, so it may be long.
        for size in (1 << 10, _MAX_HEADER):
            file.seek(position)
            try:
                header, length = _Thrift(file.read(size)).read_struct()
                break
            except IndexError:
                pass
        else:
            raise OSError(f"the header of the page at byte {position} is truncated")
        compressed, decompressed = _number(header.get(3)), _number(header.get(2))
        if decompressed < 0 or not 0 <= compressed <= column.end - position - length:
            raise OSError(f"the page at byte {position} ends outside its column")
        data = next((_struct(header[i]) for i in (5, 7, 8) if i in header), {})
        yield Page(
            compressed, decompressed, _number(data.get(1)), _number(data.get(4 if 8 in header else 2)), 7 in header
        )
        position += length + compressed


def _column(chunk: Any) -> Column:
    values = _struct(_struct(chunk).get(3))
    path = b".".join(name for name in _list(values.get(3)) if isinstance(name, bytes))
    start, dictionary, size = (_number(values.get(field)) for field in (9, 11, 7))
    # A column without values may have only a dictionary. Writers then set the other offset to 0.
    start = dictionary if dictionary > 0 and not 0 < start <= dictionary else start
    return Column(path.decode("utf-8", "replace"), start, start + size)


def _struct(value: Any) -> dict[int, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1


class _Thrift:
    """Reader of a struct in the compact protocol of Apache Thrift: values by field number."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def read_struct(self) -> tuple[dict[int, Any], int]:
        """Return the struct and its length. Raise IndexError if the data is shorter."""
        return self._struct(0), self._at

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 63:
                return value

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _struct(self, depth: int) -> dict[int, Any]:
        if depth > 20:
            raise OSError("a struct is nested too deeply")
        fields, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 0xF, depth, of_list=False)
        return fields

    def _value(self, kind: int, depth: int, *, of_list: bool) -> Any:
        if kind in (1, 2):  # True and false; in a list they take a byte.
            return self._byte() == 1 if of_list else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            size = 8 if kind == 7 else self._varint()
            self._at += size
            if self._at > len(self._data):
                raise IndexError
            return self._data[self._at - size : self._at]
        if kind in (9, 10):
            if depth > 20:
                raise OSError("a list is nested too deeply")
            head = self._byte()
            count = head >> 4 if head >> 4 != 15 else self._varint()
            return [self._value(head & 0xF, depth + 1, of_list=True) for _ in range(count)]
        if kind == 12:
            return self._struct(depth + 1)
        raise OSError(f"a field has the unknown type {kind}")
