"""A clock that the hosts of a shared folder have in common: the one that stamps its files."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

_MEASURE_AGAIN = 60.0


def boot_time() -> float:
    """Return the seconds since the system started, including those in which it was suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class FolderClock:
    """Seconds since 1970 by the clock that sets the modification times of a folder's files.

    A server of NFS or SMB has one clock for all hosts, so hosts with wrong clocks agree. Some file systems, such as Lustre, take the time
    of the host that writes: then the clocks of the hosts must agree to within a few seconds. The time never goes back in one process.

    Args:
        folder: an existing folder. A file is created and removed in it every minute.
        ticks: seconds of this host, for tests.
    """

    def __init__(self, folder: Path, ticks: Callable[[], float] = boot_time):
        self._folder, self._ticks, self._lock = folder, ticks, threading.Lock()
        self._last, self._offset = 0.0, self._measure()

    def __call__(self) -> float:
        """Return the time."""
        with self._lock:
            if self._ticks() - self._measured >= _MEASURE_AGAIN:
                self._offset = self._measure()
            self._last = max(self._last, self._ticks() + self._offset)
            return self._last

    def _measure(self) -> float:
        """Return the difference between the clocks of the file system and of this host."""
        probe = self._folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}"
        before = self._ticks()
        probe.touch(exist_ok=False)
        after = self._ticks()
        try:
            stamped = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
        self._measured = after
        return stamped - (before + after) / 2
