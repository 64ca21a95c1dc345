"""Compiled libraries in the user's cache folder. A file that another user could have written is never loaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

_MOST_BYTES = 64 << 20


def cache_folder() -> Path:
    """Return the cache folder, by the XDG rules."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "plamo2" / "kernels"


def find_or_make(key: str, make: Callable[[Path], None], folder: Path | None = None) -> Path:
    """Return a library from the cache, or make it and put it there.

    The file's name holds the hash of its contents, so a damaged file is not loaded but made anew. Processes that make the same library at
    the same time do not disturb each other.

    Args:
        key: hash of all that the library depends on.
        make: writes the library to a path.
        folder: cache folder; None: the user's.

    Raises:
        OSError: the folder cannot be made or written, or others may write it.
        RuntimeError: this user has no home folder.
    """
    folder = cache_folder() if folder is None else folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owned(folder)
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _is_intact(path, key):
            return path
        with contextlib.suppress(OSError):
            path.unlink()
    # Only this user can enter the temporary folder.
    with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as made:
        path = Path(made) / "library.so"
        make(path)
        path.chmod(0o600)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        target = folder / f"{key}-{digest[:32]}.so"
        path.replace(target)
    return target


def _check_owned(folder: Path) -> None:
    status = folder.stat()
    if not hasattr(os, "getuid"):
        return
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} must belong to this user, and no other user may write it")


def _is_intact(path: Path, key: str) -> bool:
    """Return whether a file is a regular file of this user, and its contents have the hash in its name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        owned = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        if not owned or not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
        if status.st_size > _MOST_BYTES:
            return False
        digest = hashlib.sha256(file.read()).hexdigest()
    return path.name == f"{key}-{digest[:32]}.so"
