"""A journal: what is done, a line each, written so that a kill at any moment costs no more than the line being written.

A line is an entry, a JSON object with an `id`, and its end. What a kill left behind the last line end, and everything from the first
line on that is no entry, is cut off when the journal is opened again: what those lines said is done anew.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json

_LONGEST_LINE = 64 << 20


class Journal:
    """A file of lines by id; the last line of an id counts.

    Args:
        path: the file, which need not exist.
        is_entry: whether an object with an id is an entry; all that use the journal may rely on it.

    Raises:
        ValueError: there is something else in place of the file.
    """

    def __init__(self, path: Path, is_entry: Callable[[Mapping[str, Any]], bool]):
        # A link is refused: cutting off what is no entry would shorten a file elsewhere.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise PlamoError(
                f"{path} is not a regular file: a journal must be one. Remove it, or give another --output"
            )
        self.entries: dict[str, Mapping[str, Any]] = {}
        """By id, what is done."""
        self._lock = threading.Lock()
        # Written at once and never by a buffer's leave: a line is there when `append` returns.
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
        """Write a line with an `id`; safe to call from threads."""
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
            self.entries[entry["id"]] = entry

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)


def _parse(line: bytes) -> Mapping[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = parse_json(line, "journal")
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("id"), str) else None
