"""Owner files: of several processes on hosts that share a folder, one at a time has a file with its token.

A file is created by a link, which is atomic on local and on shared file systems, unlike locks, which other hosts may not see. The file of
a dead owner is moved aside before it is removed, so that two processes never remove each other's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import is_remote

_LARGEST = 4096


def create(path: Path, content: Mapping[str, Any]) -> bool:
    """Create an owner file; return False if it exists."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(json.dumps(content))
    try:
        os.link(partial, path)
    except FileExistsError:
        # A shared file system may report the failure of a request that it repeated after it had succeeded.
        return os.stat(partial).st_nlink == 2
    finally:
        partial.unlink()
    return True


def read(path: Path) -> dict[str, Any] | None:
    """Return the content of an owner file, or None if there is none."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_LARGEST))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def age(path: Path, clock: Callable[[], float]) -> float:
    """Return the seconds since a file was touched; infinity if there is none."""
    try:
        return clock() - path.stat().st_mtime
    except OSError:
        return float("inf")


def remove_dead(path: Path, owner: Mapping[str, Any], is_dead: Callable[[Path], bool] = lambda path: True) -> bool:
    """Remove the file of a dead owner; return False if the owner is alive after all, or another process was faster.

    Args:
        path: the owner file.
        owner: its content when its owner was found dead.
        is_dead: returns whether the owner is still dead. It gets the path of the file after it has been moved aside.
    """
    # If another process was faster, its file stays where it is.
    if read(path) != owner:
        return False
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    dead = read(aside) == owner and is_dead(aside)
    if not dead:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()
    return dead


def require_links(folder: str | os.PathLike[str]) -> None:
    """Create a folder, and check that owner files work in it: it is not in a bucket, and its file system has hard links.

    Raises:
        PlamoError: workers in this folder could not exclude each other.
    """
    advice = "Use a local disk, or a file system such as NFS, Lustre or Filestore for workers on several hosts"
    if is_remote(folder):
        raise PlamoError(
            f"output {folder} is in a bucket, which does not support atomic links and renames: it must be a "
            f"folder. {advice}"
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    probe = Path(folder) / f".probe.{secrets.token_hex(4)}"
    try:
        create(probe, {})
    except OSError as error:
        raise PlamoError(
            f"the file system of output {folder} does not support hard links ({error.strerror}), which workers "
            f"need to exclude each other. {advice}"
        ) from error
    probe.unlink(missing_ok=True)
