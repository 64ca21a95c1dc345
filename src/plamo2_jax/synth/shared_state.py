"""A few numbers in a file that the workers of a run folder share, on one host or on several."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from plamo2_jax.synth import owner_file

_DEAD = 10.0
"""Seconds after which the holder of the state is taken for dead. It normally holds the state for less than a millisecond."""


class SharedState:
    """Numbers by name. An update is atomic: no other worker reads or writes between its beginning and its end.

    Processes on one host wait for a lock of the operating system, and one of them at a time competes with other hosts for an owner file.
    The file is replaced as a whole. A worker never continues from a state that is older than the one it has seen: a damaged file, or an old
    copy in the cache of a network file system, is replaced by the state that the worker remembers.

    Args:
        path: the file; it need not exist.
        defaults: initial values.
        clock: seconds of the clock that stamps the file.
        sleep: waits for the owner file.
    """

    def __init__(
        self,
        path: Path,
        defaults: Mapping[str, float],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._path, self._clock, self._sleep = path, clock, sleep
        self._owner = path.with_name(f"{path.name}.owner")
        self._seen = {"version": 0.0, **defaults}
        self._thread_lock = threading.Lock()

    def read(self) -> dict[str, float]:
        """Return the newest state that is known."""
        try:
            stored = json.loads(self._path.read_bytes())
            found = {name: float(stored[name]) for name in self._seen}
        except (OSError, ValueError, TypeError, KeyError):
            return dict(self._seen)
        if found["version"] >= self._seen["version"]:
            self._seen = found
        return dict(self._seen)

    @contextlib.contextmanager
    def update(self) -> Iterator[dict[str, float]]:
        """Yield the state, and write it when the block ends without an error."""
        token, host = secrets.token_hex(8), socket.gethostname()
        with self._thread_lock, self._host_lock() as alone:
            while not owner_file.create(self._owner, {"token": token, "host": host}):
                owner = owner_file.read(self._owner)
                if owner is not None and alone and owner.get("host") == host:
                    owner_file.remove_dead(self._owner, owner)  # A process of this host was killed.
                    continue
                if owner is not None and self._is_dead(self._owner):
                    owner_file.remove_dead(self._owner, owner, self._is_dead)
                self._sleep(random.uniform(0.001, 0.005))
            try:
                state = self.read()
                yield state
                state["version"] += 1
                self._write(state, token)
            finally:
                if (owner_file.read(self._owner) or {}).get("token") == token:
                    self._owner.unlink(missing_ok=True)

    def _write(self, state: dict[str, float], token: str) -> None:
        partial = self._path.with_name(f".{self._path.name}.{token}")
        partial.write_text(json.dumps(state))
        # A worker that was suspended for long has lost the state, and another one may have written a newer one.
        if (owner_file.read(self._owner) or {}).get("token") != token:
            partial.unlink()
            return
        os.replace(partial, self._path)
        self._seen = dict(state)

    def _is_dead(self, path: Path) -> bool:
        return _DEAD <= owner_file.age(path, self._clock) < float("inf")

    @contextlib.contextmanager
    def _host_lock(self) -> Iterator[bool]:
        """Exclude the other processes of this host. Yield False if the file system has no locks."""
        lock = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                alone = True
            except OSError:
                alone = False
            yield alone
        finally:
            os.close(lock)
