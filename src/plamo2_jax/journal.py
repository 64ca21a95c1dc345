"""Journal: an append-only file of finished work. A killed process loses at most the line that it was writing.

A line is an entry: a JSON object with an `id`. When a journal is opened, everything from the first invalid or incomplete line on is cut
off, and the work of these lines is done again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json

_LONGEST_LINE = 64 << 20


class Journal:
    """Entries by id in a file of JSON lines. The last line of an id counts.

    Args:
        path: the file, which need not exist.
        is_entry: returns whether an object with an id is a valid entry.

    Raises:
        PlamoError: `path` is a link, a folder or another special file.
    """

    def __init__(self, path: Path, is_entry: Callable[[Mapping[str, Any]], bool]):
        # A link is refused, because cutting off invalid lines would shorten a file elsewhere.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise PlamoError(
                f"{path} is not a regular file: a journal must be a regular file. Remove it, or choose another --output"
            )
        self.entries: dict[str, Mapping[str, Any]] = {}
        """Entries by id."""
        self._lock = threading.Lock()
        # Without a buffer, a line is in the file when `append` returns.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        whole = 0
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(_LONGEST_LINE), b""):
                entry = _parse(line)
                if entry is None or not is_entry(entry):
                    break
                self.entries[entry["id"]] = entry
                whole += len(line)
        os.ftruncate(self._file, whole)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write an entry with an `id`. Several threads may call this method."""
        self.extend([entry])

    def extend(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write entries with an `id` each, and wait for the disk once. Several threads may call this method."""
        lines = b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)
        with self._lock:
            while lines:
                lines = lines[os.write(self._file, lines) :]
            os.fsync(self._file)
            self.entries.update((entry["id"], entry) for entry in entries)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _parse(line: bytes) -> Mapping[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = parse_json(line, "journal")
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("id"), str) else None
