"""The files of a model's folder that may be read, if the folder comes from another source.

A downloaded folder may hold symbolic links to any file of the user, and the content of such a file would end up in converted output. So a
file must be a regular file in the folder, or a link to one. A snapshot of the Hugging Face cache, `models--NAME/snapshots/REVISION`,
consists of links into `models--NAME/blobs`; these links are allowed too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import is_remote, located


def file_inside(folder: str | os.PathLike[str], name: str, *, error: type[PlamoError] = PlamoError) -> Path:
    """Return the path of a file in a folder.

    Args:
        folder: Folder on this machine, or in a bucket (which has no links).
        name: Plain file name.

    Raises:
        error: The file does not exist or is not a regular file, or its name or a symbolic link leads out of the folder.
    """
    path = optional_file(folder, name, error=error)
    if path is None:
        raise error(f"{folder} has no file {name}")
    return path


def optional_file(folder: str | os.PathLike[str], name: str, *, error: type[PlamoError] = PlamoError) -> Path | None:
    """Return the path of a file in a folder, or None if there is no file of that name. Other errors are the same as for `file_inside`."""
    if name != Path(name).name or name in ("", ".", "..") or "\0" in name:
        raise error(f"{folder} refers to a file outside the folder, {name[:100]!r}: only plain file names are allowed")
    path = located(folder) / name
    if is_remote(folder):
        return path if path.is_file() else None
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        # realpath resolves as much as possible of a loop or a broken link. The later stat then reports the problem.
        root = Path(os.path.realpath(folder))
        allowed = [root]
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            allowed.append(root.parent.parent / "blobs")
        if Path(os.path.realpath(path)).parent not in allowed:
            raise error(_refusal(path))
    _check_regular(path, error)
    return path


def check_tree_inside(
    folder: str | os.PathLike[str], tree: str | os.PathLike[str], *, error: type[PlamoError] = PlamoError
) -> None:
    """Check that a subfolder, such as a run's checkpoint, holds only regular files of the folder, or links to them.

    Args:
        folder: Folder on this machine, or in a bucket (which has no links).
        tree: Folder at any depth below it.

    Raises:
        error: The subfolder holds something else. The message names it.
    """
    if is_remote(folder):
        return
    if leads_out(folder, tree):
        raise error(_refusal(tree))
    for parent, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and leads_out(folder, path):
                raise error(_refusal(path))
            if name in files:
                _check_regular(path, error)


def leads_out(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads out of a folder through symbolic links."""
    root = os.path.realpath(folder)
    return os.path.commonpath((root, os.path.realpath(path))) != root


def _check_regular(path: Path, error: type[ValueError]) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise error(f"{path} is {kind}: it must be a regular file")


def _refusal(path: str | os.PathLike[str]) -> str:
    target = os.path.realpath(path)
    return f"{path} is a symbolic link out of its folder, to {target}. Copy the file itself (cp -L) and try again"
