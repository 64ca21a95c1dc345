"""Folders on disk and in buckets: one way to name both, and to write what an object store cannot do in place.

A path is pathlib's where it is one of this machine, and etils' where it is the address of a bucket, gs://BUCKET/... or s3://BUCKET/...
Both have the same methods; what object stores lack (appending, renaming into place) is here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

_ADDRESS = re.compile(r"(gs|s3):/+(?=[^/])")
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}


def address(path: str | os.PathLike[str]) -> str:
    """A path as text; a bucket's address has its second slash, which pathlib takes away."""
    return _ADDRESS.sub(r"\1://", os.fspath(path), count=1)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is the address of a bucket."""
    return _ADDRESS.match(os.fspath(path)) is not None


def located(path: str | os.PathLike[str]) -> Path:
    """The path to use: a Path, or for a bucket etils' path, which is used alike.

    Raises:
        ValueError: it is a bucket's, and the package that reads such is not installed.
    """
    if not is_remote(path):
        return Path(path)
    scheme = address(path).split(":")[0]
    if not any(importlib.util.find_spec(name) for name in (_DRIVERS[scheme], "tensorflow")):
        raise ValueError(
            f"{address(path)} needs the package {_DRIVERS[scheme]}: pip install 'etils[epath-{'gcs' if scheme == 'gs' else 's3'}]'"
        )
    return epath.Path(address(path))


def absolute(path: str | os.PathLike[str]) -> Path:
    """As `located`, independent of the working directory. (etils' own `absolute` takes an address for a relative path.)"""
    found = located(path)
    return found if is_remote(path) else found.absolute()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    if is_remote(path):
        path.write_bytes(content)  # An object appears when it is complete.
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, which need not exist. An object is written anew: not for what grows large."""
    if is_remote(path):
        path.write_bytes((path.read_bytes() if path.exists() else b"") + content)
        return
    with path.open("ab") as file:
        file.write(content)


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its folders."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


class Mirror:
    """A folder on this machine for what is written bit by bit; for a run in a bucket, what is in it is copied there by `upload`.

    Args:
        folder: where the files belong.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._target = located(folder)
        self._remote = is_remote(folder)
        self.folder = Path(tempfile.mkdtemp(prefix="plamo2-")) if self._remote else self._target
        """Where to write them."""

    def download(self, name: str) -> None:
        """Fetch a file, if it is there."""
        if self._remote and (self._target / name).exists():
            (self.folder / name).write_bytes((self._target / name).read_bytes())

    def clear(self, name: str) -> None:
        """Remove a folder, here and there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        if self._remote and (self._target / name).exists():
            (self._target / name).rmtree()

    def upload(self) -> None:
        """Copy everything in it."""
        if self._remote and self.folder.is_dir():
            for path in files_below(self.folder):
                target = self._target / path.relative_to(self.folder).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def close(self) -> None:
        """Upload, and remove what was only a copy."""
        self.upload()
        if self._remote:
            shutil.rmtree(self.folder, ignore_errors=True)
