"""The user's cache folder, and functions compiled by numba that are cached there."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of cached files, `~/.cache/plamo2/NAME` or `$XDG_CACHE_HOME/plamo2/NAME`.

    The function does not create it.

    Raises:
        RuntimeError: this user has no home folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "plamo2" / name


@functools.cache
def compile_function(function: Callable) -> Callable[..., Any]:
    """Return a function compiled by numba, and cached on disk if the user's cache folder can be written.

    By default, numba stores its files beside the source file. pip does not remove them from site-packages, and the folder that they are in
    hides a package of a later `pip install --editable`. numba reads pickles, so a folder that other users may write is not used.

    Raises:
        ImportError: numba is not installed.
    """
    import numba

    jit = functools.partial(numba.njit, nogil=True)
    if numba.config.CACHE_DIR:  # NUMBA_CACHE_DIR, set by the user
        return jit(cache=True)(function)
    try:
        folder = cache_folder("numba")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_usable(folder)
        # The decorator reads the folder, and keeps it. Other packages keep numba's own setting.
        numba.config.CACHE_DIR = str(folder)
        try:
            return jit(cache=True)(function)
        finally:
            numba.config.CACHE_DIR = ""
    except (OSError, RuntimeError):  # The folder cannot be written, or this user has no home folder.
        return jit()(function)


def _require_usable(folder: Path) -> None:
    """Raise PermissionError unless this user may write the folder, and no other user may."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(f"{folder} must belong to this user, and no other user may write it")
