"""Leases: a work unit is worked on by one worker at a time, on one host or on several with a shared folder.

On one host, a lock of the operating system ends with its process, so the unit of a killed worker is free at once. Other hosts may not see
that lock. For them, the owner touches a file again and again; a lease without a sign of life for two minutes is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STALE = 120.0
"""Seconds without a sign of life after which the lease of another host is taken over."""
_BEAT = 15.0


@contextlib.contextmanager
def lease(folder: Path, *, host: str | None = None) -> Iterator[bool]:
    """Take the lease of a folder until the block ends. Yield False if another worker has it.

    Args:
        folder: the folder of a unit.
        host: name of this host; None: its host name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    host = host or socket.gethostname()
    path, token = folder / "lease.json", secrets.token_hex(8)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        owner = _owner(path)
        if owner is not None and owner.get("host") != host and _age(path) < STALE:
            yield False
            return
        if owner is not None and not _remove(path, owner):
            yield False
            return
        if not _create(path, {"host": host, "process": os.getpid(), "token": token}):
            yield False
            return
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, token, ended), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            ended.set()
            beat.join()
            if (_owner(path) or {}).get("token") == token:
                path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _beat(path: Path, token: str, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        # A worker that was suspended for long may have lost its lease.
        if (_owner(path) or {}).get("token") != token:
            return
        with contextlib.suppress(OSError):
            os.utime(path)


def _create(path: Path, content: dict) -> bool:
    """Create the file; return False if it exists. A link is atomic on shared file systems, too."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(json.dumps(content))
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def _remove(path: Path, owner: dict) -> bool:
    """Remove the file of a dead owner; return False if another worker was faster."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    if _owner(aside) != owner:
        # Another worker took the lease after this one had read it: give it back.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
        return False
    aside.unlink()
    return True


def _owner(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return STALE
