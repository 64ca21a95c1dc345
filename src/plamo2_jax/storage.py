"""Folders on disk and in buckets: one way to name both, and to write so that no reader sees half of a file or folder.

A path is pathlib's where it is one of this machine, and etils' where it is the address of a bucket, gs://BUCKET/... or s3://BUCKET/...
Both have the same methods; what object stores lack (appending, renaming into place) is here.

Writers work under a unique temporary name beside the target, `.NAME.RANDOM.partial`, and rename it at the end. They hold a lock on it
while they live: a second writer of the same target is refused, and what a killed writer left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import socket
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
    """Write a file whole or not at all. Of two writers at the same time, the later one wins.

    Raises:
        OSError: it cannot be written; the message names the path, also for a full disk.
    """
    if is_remote(path):
        path.write_bytes(content)  # An object appears when it is complete.
        return
    with new_file(path, alone=False) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def new_file(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """Yield the path of an empty temporary file; it replaces `path` when the block ends without an error.

    Args:
        path: the file to write, on this machine.
        alone: refuse to write while another process writes it.

    Raises:
        ValueError: another process is writing `path`.
        OSError: a full disk or another problem; the message names `path`.
    """
    path = Path(path)
    with naming_full_disk(path):
        _remove_dead(path, alone)
        partial, lock = _claim(path, folder=False)
        try:
            yield partial
            _sync(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
            os.close(lock)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder; it becomes `path` when the block ends without an error, and is removed otherwise.

    Args:
        path: the folder to make, on this machine. It must not exist or be empty.
        replace: replace a folder that exists.

    Raises:
        ValueError: `path` is occupied, or another process is writing it. Nothing was changed.
        OSError: a full disk or another problem; the message names `path`.
    """
    path = Path(path).absolute()
    with naming_full_disk(path), new_parents(path):
        _remove_dead(path, alone=True)
        if not replace:
            require_empty(path)
        partial, lock = _claim(path, folder=True)
        try:
            yield partial
            for file in files_below(partial):
                _sync(file)
            _sync(partial)
            _move_into_place(partial, path, replace)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """Make the folders above a path; after an error, remove those that were made, unless something else is in them."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def require_empty(folder: Path) -> None:
    """Raise ValueError where a folder is occupied, before any work is done."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ValueError(f"{folder} exists already; give a folder that does not exist or is empty")


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from using a folder until the block ends or this process does, however it ends.

    The lock is on the file `.lock` in the folder, which stays. A bucket has no locks: nothing is done for one.

    Raises:
        ValueError: another process has the lock; the message names it.
    """
    if is_remote(folder):
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "unknown"
            raise ValueError(
                f"{folder} is in use by another process ({holder}); wait until it ends, or end it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def allocate(path: Path) -> None:
    """Reserve disk space for the whole length of a file.

    A process that writes through a memory map to a full disk dies by SIGBUS. After this call the map can be written.

    Raises:
        OSError: the disk is full.
    """
    with path.open("r+b") as file:
        if size := os.fstat(file.fileno()).st_size:
            os.posix_fallocate(file.fileno(), 0, size)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that the disk or the quota is full."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors, TensorStore and ArrayRecord report the system's error as text.
        if re.search(r"ENOSPC|EDQUOT|No space left on device|Disk quota exceeded", str(current)):
            return True
        current = current.__cause__ or current.__context__
    return False


@contextlib.contextmanager
def naming_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the many errors that mean a full disk into one sentence with the path that the user knows.

    Raises:
        OSError: the disk is full. Other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise OSError(
            f"{path} could not be written: the disk is full. Free some space and run the command again"
        ) from (error)


def _claim(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Make a temporary file or folder beside `path` and lock it; returns it and the descriptor that holds the lock.

    Two writers that start in the same millisecond both pass. They write under different names, and `_move_into_place` lets one win.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    # It gets its final temporary name when it is locked, so that no other process takes it for a dead writer's.
    unlocked = partial.with_suffix(".unlocked")
    if folder:
        unlocked.mkdir()
    else:
        unlocked.touch(exist_ok=False)
    lock = _try_lock(unlocked)
    assert lock is not None
    os.rename(unlocked, partial)
    return partial, lock


def _remove_dead(path: Path, alone: bool) -> None:
    """Remove the temporaries of `path` whose writers are dead; raise ValueError for a living one if `alone`."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.partial(\.old)?")
    for other in path.parent.iterdir():
        if not pattern.fullmatch(other.name):
            continue
        try:
            held = _try_lock(other)
        except FileNotFoundError:  # It was renamed into place in this moment.
            continue
        if held is not None and other.suffix == ".old" and not path.exists():
            os.rename(other, path)  # Killed between the two renames of a replacement: what was there stays.
            os.close(held)
        elif held is not None:
            shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)
            os.close(held)
        elif alone:
            raise ValueError(f"{path} is being written by another process; wait until it ends, or choose another path")


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder; None where a living process has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass  # This file system has no locks.
    return descriptor


def _move_into_place(partial: Path, path: Path, replace: bool) -> None:
    old = partial.with_name(f"{partial.name}.old")
    if replace and path.exists():
        os.rename(path, old)
    try:
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ValueError(f"{path} exists already; another process made it meanwhile") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
