"""Leases: a work unit is worked on by one worker at a time, on one host or on several with a shared folder.

On one host, a lock of the operating system ends with its process, so the unit of a killed worker is free at once. Other hosts may not see
that lock. For them, the owner touches a file again and again. An owner that could not touch it for 90 s must not use its lease any more,
and after 120 s another host takes it over. So an owner that was suspended finds out before it sends a request or stores a response.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from plamo2_jax.errors import PlamoError
from plamo2_jax.synth import owner_file

EXPIRES = 90.0
"""Seconds without a sign of life after which the owner must not use its lease."""
STALE = 120.0
"""Seconds without a sign of life after which the lease of another host is taken over. The difference allows for clocks that disagree."""
_BEAT = 15.0


class Halt(PlamoError):
    """A worker stops to send requests. Requests in flight are finished."""


class LeaseLost(Halt):
    """The lease of a unit has expired, or another worker has taken it over."""


class Lease:
    """The lease of a folder, held by this worker.

    Args:
        path: the owner file.
        token: the token in it.
        clock: seconds of the clock that stamps the file.
    """

    def __init__(self, path: Path, token: str, clock: Callable[[], float]):
        self._path, self._token, self._clock = path, token, clock

    def check(self) -> None:
        """Check that this worker still has the lease.

        Raises:
            LeaseLost: it has not.
        """
        if (owner_file.read(self._path) or {}).get("token") != self._token:
            raise LeaseLost(f"another worker has taken over {self._path.parent}")
        if owner_file.age(self._path, self._clock) >= EXPIRES:
            raise LeaseLost(f"the lease of {self._path.parent} has expired, because this process was suspended")

    def renew(self) -> None:
        """Touch the owner file; raise LeaseLost as `check` does."""
        self.check()
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def release(self) -> None:
        """Remove the owner file, unless it is another worker's."""
        if (owner_file.read(self._path) or {}).get("token") == self._token:
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def lease(folder: Path, *, host: str | None = None, clock: Callable[[], float] = time.time) -> Iterator[Lease | None]:
    """Take the lease of a folder until the block ends. Yield None if another worker has it.

    Args:
        folder: the folder of a unit.
        host: name of this host; None: its host name.
        clock: seconds of the clock that stamps files in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    host = host or socket.gethostname()
    path, token = folder / "lease.json", secrets.token_hex(8)

    def is_stale(path: Path) -> bool:
        return owner_file.age(path, clock) >= STALE

    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        has_locks = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError:
            has_locks = False
        owner = owner_file.read(path)
        if owner is not None:
            # A living process of this host has the lock above.
            dead = (lambda _: True) if has_locks and owner.get("host") == host else is_stale
            if not dead(path) or not owner_file.remove_dead(path, owner, dead):
                yield None
                return
        if not owner_file.create(path, {"host": host, "process": os.getpid(), "token": token}):
            yield None
            return
        mine, ended = Lease(path, token, clock), threading.Event()
        beat = threading.Thread(target=_beat, args=(mine, ended), daemon=True)
        beat.start()
        try:
            yield mine
        finally:
            ended.set()
            beat.join()
            mine.release()
    finally:
        os.close(lock)


def _beat(lease: Lease, ended: threading.Event) -> None:
    """Renew a lease until it ends or is lost."""
    while not ended.wait(_BEAT):
        try:
            lease.renew()
        except LeaseLost:
            return
