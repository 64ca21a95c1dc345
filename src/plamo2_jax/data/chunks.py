"""Read inputs in chunks that other processes parse: consecutive records of a file, with JSON that is not parsed yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plamo2_jax.data.documents import Document, PartReport, UnreadableRecord
from plamo2_jax.data.readers import Fields, Records
from plamo2_jax.data.sources import FieldNames, to_documents

CHUNK_BYTES, CHUNK_RECORDS = 1 << 20, 4096
"""A chunk ends at the record that reaches one of these sizes."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive records of a file."""

    records: list[tuple[str, Fields]]
    names: FieldNames

    def documents(self, report: PartReport) -> Iterator[Document]:
        """Parse the records, and yield those that are documents."""
        return to_documents(iter(self.records), self.names, report)


def read_chunks(streams: Iterable[tuple[Records, FieldNames]]) -> Iterator[Chunk]:
    """Yield the records of `sources.open_streams` in chunks."""
    for records, names in streams:
        chunk: list[tuple[str, Fields]] = []
        size = 0
        for place, fields in records:
            chunk.append((place, fields))
            size += _size(fields)
            if size >= CHUNK_BYTES or len(chunk) >= CHUNK_RECORDS:
                yield Chunk(chunk, names)
                chunk, size = [], 0
        if chunk:
            yield Chunk(chunk, names)


def _size(value: Any) -> int:
    """Return the approximate size of a value in bytes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, UnreadableRecord):
        return 256
    if isinstance(value, Mapping):
        return sum(map(len, map(str, value))) + sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return 8 + sum(map(_size, value))
    return getattr(value, "nbytes", 16)
