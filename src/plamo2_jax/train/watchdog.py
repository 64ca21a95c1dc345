"""A watchdog that writes the stacks of all threads when no step was done for too long."""

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
    """Context manager that writes the stacks of all threads to stderr and to stalls.txt when no step was done for too long.

    It starts with the first `beat`, so compiling is no stall, and it reports each stall once. The process continues: only the user knows
    what it waits for.

    Args:
        folder: where stalls.txt goes.
        seconds: time without a step that counts as a stall.
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
        """Note that the run makes progress."""
        with self._changed:
            self._beats += 1
            if self._beats == 1 or self._stalled:
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._beats)
            while not self._ended:
                seen = self._beats
                # Beats do not wake it: it looks again at its own pace, so a stall is seen after one to two times `seconds`.
                self._changed.wait(self._seconds)
                if self._beats == seen and not self._ended:
                    self._stalled = True
                    self._dump()
                    self._changed.wait_for(lambda seen=seen: self._ended or self._beats != seen)
                    self._stalled = False

    def _dump(self) -> None:
        line = f"no step for {self._seconds:g} s; the stacks of all threads are in {self._path}"
        print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())
            file.flush()
            faulthandler.dump_traceback(file)
            file.seek(0)
            append(self._path, file.read())
        with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be no real file.
            faulthandler.dump_traceback(sys.stderr)
