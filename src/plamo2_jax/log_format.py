"""Log output as JSON lines: one object per line, for programs that collect the logs of a job.

`json_output` replaces standard output and standard error, so every line of the process becomes an object: structured events (`emit`), and
the text lines of this and other packages as {"event": "message", "text": ...}.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]

_target: TextIO | None = None
"""The stream of the JSON lines; None: text output."""
_lock = threading.Lock()


def is_json() -> bool:
    """Return whether the output of this process is JSON lines."""
    return _target is not None


def emit(event: str, **fields: Any) -> None:
    """Write an event, if the output is JSON lines. NaN and infinities become null."""
    if _target is not None:
        line = json.dumps({"time": round(time.time(), 3), "event": event, **_finite(fields)}, ensure_ascii=False)
        with _lock:
            _target.write(line + "\n")
            _target.flush()


@contextlib.contextmanager
def json_output(enabled: bool = True) -> Iterator[None]:
    """Write everything that the block prints as JSON lines to standard error, if `enabled`."""
    global _target
    if not enabled or _target is not None:
        yield
        return
    _target = sys.stderr
    writers = _LineWriter("stdout"), _LineWriter("stderr")
    try:
        with contextlib.redirect_stdout(writers[0]), contextlib.redirect_stderr(writers[1]):
            yield
    finally:
        for writer in writers:
            writer.finish()
        _target = None


class _LineWriter(io.TextIOBase):
    """A text stream whose lines become events."""

    def __init__(self, stream: str):
        self._stream, self._rest = stream, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *complete, self._rest = (self._rest + text).split("\n")
        for line in complete:
            self._emit(line)
        return len(text)

    def finish(self) -> None:
        """Write an unfinished last line."""
        self._emit(self._rest)
        self._rest = ""

    def _emit(self, line: str) -> None:
        text = line.rstrip().rpartition("\r")[2]  # What a terminal shows of a line that is drawn several times.
        if text:
            emit("message", stream=self._stream, text=text)


def _finite(value: Any) -> Any:
    """Return a value that JSON can express."""
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
