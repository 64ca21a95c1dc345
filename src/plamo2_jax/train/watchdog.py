"""A watchdog for stalled runs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time

from plamo2_jax.storage import append, located

STALLS = "stalls.txt"


class StallWatchdog:
    """Context manager that writes the stacks of all threads to stderr and to stalls.txt when a run makes no step for too long.

    It starts with the first `beat`, so compilation is not a stall, and it reports each stall once. The process continues, because the cause
    may be temporary.

    Args:
        folder: Folder of stalls.txt.
        seconds: Time without a step that is a stall.
    """

    def __init__(self, folder: str | os.PathLike[str], seconds: float):
        self._path = located(folder) / STALLS
        self._seconds = seconds
        self._beats = 0
        self._stalled = False
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._watch, name="stall watchdog", daemon=True)

    def __enter__(self) -> StallWatchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def beat(self) -> None:
        """Record progress of the run."""
        with self._changed:
            self._beats += 1
            if self._beats == 1 or self._stalled:
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._beats)
            while not self._ended:
                seen = self._beats
                # A beat does not wake this thread, so a stall is detected after one to two times `seconds`.
                self._changed.wait(self._seconds)
                if self._beats == seen and not self._ended:
                    self._stalled = True
                    self._dump()
                    self._changed.wait_for(lambda seen=seen: self._ended or self._beats != seen)
                    self._stalled = False

    def _dump(self) -> None:
        line = f"no step has finished for {self._seconds:g} s; the stack traces of all threads are in {self._path}"
        print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())
            file.flush()
            faulthandler.dump_traceback(file)
            file.seek(0)
            append(self._path, file.read())
        with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may not be a real file.
            faulthandler.dump_traceback(sys.stderr)
