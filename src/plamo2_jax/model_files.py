"""The one rule for files of a model's folder, whoever made it: which of them may be read.

A folder from elsewhere may hold symbolic links to any file of the user's, whose content would come to stand in what is written from it.
So a file must be a regular file of the folder itself, or a link to one. A snapshot of the Hugging Face cache,
`models--NAME/snapshots/REVISION`, consists of links into `models--NAME/blobs`; those are allowed too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from plamo2_jax.storage import is_remote, located


def file_inside(folder: str | os.PathLike[str], name: str, *, error: type[ValueError] = ValueError) -> Path:
    """The path of a file of a folder.

    Args:
        folder: of this machine, or of a bucket, where there are no links.
        name: a plain file name.
        error: class of the error.

    Raises:
        ValueError: (as `error`) the file does not exist, is not a regular file, or lies outside the folder, by its name or through a
            symbolic link.
    """
    path = optional_file(folder, name, error=error)
    if path is None:
        raise error(f"{folder} has no file {name}")
    return path


def optional_file(folder: str | os.PathLike[str], name: str, *, error: type[ValueError] = ValueError) -> Path | None:
    """As `file_inside`, but None where there is nothing of that name."""
    if name != Path(name).name or name in ("", ".", "..") or "\0" in name:
        raise error(f"{folder} names a file outside the folder: {name[:100]!r}; only plain file names are allowed")
    path = located(folder) / name
    if is_remote(folder):
        return path if path.is_file() else None
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        _check_link(Path(folder), path, error)
    _check_regular(path, error)
    return path


def check_tree_inside(
    folder: str | os.PathLike[str], tree: str | os.PathLike[str], *, error: type[ValueError] = ValueError
) -> None:
    """Raise unless a folder in a folder, such as a run's checkpoint, holds nothing but regular files of the latter, or links to such.

    Args:
        folder: of this machine, or of a bucket, where there are no links.
        tree: a folder at any depth below it.
        error: class of the error.
    """
    if is_remote(folder):
        return
    root = os.path.realpath(folder)
    _check_target(root, Path(tree), error)
    for parent, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                _check_target(root, path, error)
            if name in files:
                _check_regular(path, error)


def _check_target(root: str, path: Path, error: type[ValueError]) -> None:
    target = os.path.realpath(path)
    if os.path.commonpath((root, target)) != root:
        raise error(_refusal(path, target))


def _check_regular(path: Path, error: type[ValueError]) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise error(f"{path} is {kind}; it must be a regular file")


def _check_link(folder: Path, path: Path, error: type[ValueError]) -> None:
    # realpath resolves what it can of a loop or of a broken link, and stat says later what is wrong with it.
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        allowed.append(root.parent.parent / "blobs")
    if target.parent not in allowed:
        raise error(_refusal(path, target))


def _refusal(path: Path, target: str | os.PathLike[str]) -> str:
    return f"{path} is a symbolic link out of its folder, to {target}; copy the files themselves (cp -L) and try again"
