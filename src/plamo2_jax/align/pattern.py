"""Regular expressions of others in bounded time.

Some take longer than anybody can wait (`(a+)+b` on a row of a's), and Python's engine cannot be interrupted from another thread. So a
process of its own matches, and is ended and begun anew where it takes too long.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading

_SERVE = """
import json, re, sys
for line in sys.stdin:
    pattern, text = json.loads(line)
    try:
        found = re.fullmatch(pattern, text) is not None
    except (RecursionError, OverflowError, MemoryError):
        found = False
    print(int(found), flush=True)
"""


class _Matcher:
    """One process that matches, begun when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def matches(self, pattern: str, text: str, seconds: float) -> bool:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
                )
                # What it takes to start is not the expression's.
                self._ask("", "", 60)
            return self._ask(pattern, text, seconds)

    def _ask(self, pattern: str, text: str, seconds: float) -> bool:
        process = self._process
        try:
            process.stdin.write(json.dumps([pattern, text]).encode() + b"\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], seconds)[0]:
                return process.stdout.readline() == b"1\n"
        except BrokenPipeError:
            pass
        self._end()
        return False

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._process = None


_matcher = _Matcher()
atexit.register(_matcher.close)


def matches_whole(pattern: str, text: str, seconds: float) -> bool:
    """Whether the whole text matches, as far as that is found out in time."""
    return _matcher.matches(pattern, text, seconds)
