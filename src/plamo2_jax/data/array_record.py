"""Decompressed sizes of the chunks of an ArrayRecord file, read from their headers before any chunk is decompressed.

ArrayRecord stores records in Riegeli chunks (https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md). A chunk
has a header of 40 bytes: three hashes and sizes, the number of records, and the decompressed size of the records. The file is divided into
blocks of 64 KiB. Each block begins with a header of 24 bytes, which may be in the middle of a chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from plamo2_jax.errors import PlamoError

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")


class Chunk(NamedTuple):
    """Number of records in a chunk, and their decompressed bytes."""

    records: int
    bytes: int


def read_chunks(path: Path, records: int) -> Iterator[Chunk]:
    """Yield the chunks of a file in order, until they hold `records` records.

    Raises:
        PlamoError: The file has fewer records, or a chunk has more than are left.
    """
    size = path.stat().st_size
    position = found = 0
    with path.open("rb") as file:
        while found < records:
            begin = position
            header, position = _read(file, position, _CHUNK_HEADER.size)
            if len(header) < _CHUNK_HEADER.size or position > size:
                raise PlamoError(
                    f"{path} is damaged: it ends after {found} of {records} records. Copy or write the file again"
                )
            _, data_size, _, kind_and_records, decompressed = _CHUNK_HEADER.unpack(header)
            count = kind_and_records >> 8
            # A record takes at least one byte of the file.
            position = max(_skip(position, data_size), begin + count)
            found += count
            if found > records or position > size:
                raise PlamoError(f"{path} is damaged: the chunk at byte {begin} holds more than the file")
            if count:
                yield Chunk(count, decompressed)


def _read(file: IO[bytes], position: int, size: int) -> tuple[bytes, int]:
    """Read `size` bytes, less than a block, without block headers. Return them and the position after them."""
    end = _skip(position, size)
    file.seek(position)
    data = file.read(end - position)
    boundary = -position % _BLOCK
    return data[:boundary] + (data[boundary + _BLOCK_HEADER :] if boundary < end - position else b""), end


def _skip(position: int, size: int) -> int:
    """Return the position after `size` bytes, not counting block headers."""
    if position % _BLOCK == 0 and size:
        position += _BLOCK_HEADER
    left = _BLOCK - position % _BLOCK
    if size <= left:
        return position + size
    blocks, rest = divmod(size - left, _BLOCK - _BLOCK_HEADER)
    end = position + left + blocks * _BLOCK
    return end + _BLOCK_HEADER + rest if rest else end
