"""The newest lines of a growing metrics.jsonl, read in bounded memory and without reading old lines again."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.json_input import parse_json
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import is_remote, located
from plamo2_jax.train.metrics import METRICS, metrics_problem

_FIRST_BYTES = 8 << 20
"""Bytes at the end of the file that the first read takes. A line of an update has about 600 bytes."""
_MOST_LINES = 5000

Lines = Sequence[dict[str, float]]


class LogTail:
    """Read the newest lines of a run's metrics.jsonl again and again. Damaged lines and an unfinished last line are skipped.

    A run that resumes replaces the file; it is then read from its end again. In a bucket, the whole file is read each time it changes.

    Args:
        folder: Run folder.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = located(folder)
        self._remote = is_remote(folder)
        self._file_id: tuple[int, int] | None = None
        self._offset = 0
        self._rest = b""
        self._lines: collections.deque[dict[str, float]] = collections.deque(maxlen=_MOST_LINES)

    def read(self) -> Lines:
        """Read the lines that were added since the last call and return the newest lines, oldest first; none if there is no file yet."""
        path = optional_file(self._folder, METRICS)
        if path is None:
            self._restart(0)
            return []
        if self._remote:
            self._restart(0)
            self._take(path.read_bytes()[-_FIRST_BYTES:])
        else:
            self._follow(path)
        return list(self._lines)

    def _follow(self, path: Path) -> None:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            file_id = (status.st_dev, status.st_ino)
            if file_id != self._file_id or status.st_size < self._offset:
                self._file_id = file_id
                # The first line is cut unless the file starts here; a part of a line is not valid JSON and is skipped.
                self._restart(max(0, status.st_size - _FIRST_BYTES))
            file.seek(self._offset)
            data = file.read(_FIRST_BYTES)
            while data:
                self._offset += len(data)
                self._take(data)
                data = file.read(_FIRST_BYTES)

    def _restart(self, offset: int) -> None:
        self._lines.clear()
        self._rest, self._offset = b"", offset

    def _take(self, data: bytes) -> None:
        *complete, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _FIRST_BYTES:
            self._rest = b""  # This is not a log.
        for line in complete:
            value = _parse(line)
            if value is not None:
                self._lines.append(value)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line, METRICS)
    except ValueError:
        return None
    return value if isinstance(value, dict) and metrics_problem(value) is None else None
