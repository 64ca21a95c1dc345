"""Read files as decompressed bytes with bounded memory: a small file can expand to any size."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from plamo2_jax.data.documents import UnreadableRecord
from plamo2_jax.errors import PlamoError

MAX_RECORD_BYTES = 64 << 20
"""Default size limit of a record (a line, a text file, a row, a stored record), in bytes."""
_XZ_MEMORY = 512 << 20
_CHUNK = 1 << 20
_EMPTY_LINES = 1000


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, decompressed by its suffix: .gz, .xz, .bz2 or .zst."""
    with contextlib.ExitStack() as stack:
        if path.suffix == ".zst":
            import pyarrow

            raw = stack.enter_context(pyarrow.input_stream(str(path), compression="zstd"))
        else:
            raw = stack.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            raw = stack.enter_context(gzip.GzipFile(fileobj=raw))
        elif path.suffix == ".xz":
            # By the format, a file may need 4 GiB of memory to decompress.
            raw = _Decompressed(raw, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))
        elif path.suffix == ".bz2":
            raw = _Decompressed(raw, bz2.BZ2Decompressor)
        yield stack.enter_context(io.BufferedReader(raw, _CHUNK))


def read_lines(file: io.BufferedReader, limit: int) -> Iterator[tuple[int, bytes | UnreadableRecord]]:
    """Yield the lines of a file, numbered from 1. A line longer than `limit` bytes is replaced by an UnreadableRecord.

    Of consecutive empty lines, only the first 1,000 are yielded.
    """
    number = empty = 0
    while line := file.readline(limit + 1):
        number += 1
        empty = empty + 1 if line.isspace() else 0
        if empty > _EMPTY_LINES:
            # Billions of empty lines take a few MB when compressed, and hours to read one by one.
            ahead = file.peek()
            number += file.read(len(ahead) - len(ahead.lstrip())).count(b"\n")
            continue
        if len(line) > limit and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)
            yield number, too_long("line", limit)
        else:
            yield number, line


def too_long(what: str, limit: int) -> UnreadableRecord:
    """Return the bad record for a record of more than `limit` bytes."""
    size = f"{limit >> 20} MiB" if limit % (1 << 20) == 0 else f"{limit:,} bytes"
    return UnreadableRecord("too long", f"{what} of more than {size}")


@contextlib.contextmanager
def report_damage(path: Path) -> Iterator[None]:
    """Turn the errors of decompressors and file formats, which rarely name the file, into a PlamoError that names it."""
    import pyarrow

    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (EOFError, OSError, RuntimeError, UnicodeError, lzma.LZMAError, zlib.error, pyarrow.ArrowException) as error:
        raise PlamoError(f"{path} is damaged or does not have the format of its name: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened; the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class _Decompressed(io.RawIOBase):
    """The decompressed bytes of a file with one or more compressed streams.

    The readers of the standard library have no memory limit, and treat damage after the first stream as the end of the file.
    """

    def __init__(self, file: IO[bytes], new_decoder: Callable):
        self._file, self._new_decoder = file, new_decoder
        self._decoder = new_decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            data = b""
            if self._decoder.eof:
                # Streams may be padded with zeros.
                data = self._decoder.unused_data.lstrip(b"\0")
                while not data:
                    data = self._file.read(_CHUNK)
                    if not data:
                        return 0
                    data = data.lstrip(b"\0")
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input:
                data = self._file.read(_CHUNK)
                if not data:
                    raise EOFError("the file ends before the end of the compressed stream")
            out = self._decoder.decompress(data, len(buffer))
            if out:
                buffer[: len(out)] = out
                return len(out)
