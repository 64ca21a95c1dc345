"""Local folders and buckets under one interface, with atomic writes of files and folders.

A path is a pathlib path for this machine, and an etils path for a bucket, gs://BUCKET/... or s3://BUCKET/... Both have the same methods.
This module adds operations that object stores lack (appending, renaming into place).

Writers write to a unique temporary name beside the target, `.NAME.RANDOM.partial`, and rename it at the end. They hold a lock on the
temporary while they run: a second writer of the same target is refused, and the next writer removes the temporary of a killed writer.
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
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from plamo2_jax.errors import PlamoError

_ADDRESS = re.compile(r"(gs|s3):/+(?=[^/])")
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}


def address(path: str | os.PathLike[str]) -> str:
    """Return a path as text. For a bucket, restore the second slash that pathlib removes."""
    return _ADDRESS.sub(r"\1://", os.fspath(path), count=1)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is the address of a bucket."""
    return _ADDRESS.match(os.fspath(path)) is not None


def is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link. Buckets have none."""
    return not is_remote(path) and path.is_symlink()


def located(path: str | os.PathLike[str]) -> Path:
    """Return a pathlib path, or an etils path for the address of a bucket. Both have the same methods.

    Raises:
        PlamoError: The path is in a bucket, and the package for it is not installed.
    """
    if not is_remote(path):
        return Path(path)
    scheme = address(path).split(":")[0]
    if not any(importlib.util.find_spec(name) for name in (_DRIVERS[scheme], "tensorflow")):
        raise PlamoError(
            f"{address(path)} needs the package {_DRIVERS[scheme]}: install this project with the extra {scheme}, as in "
            f"pip install '.[{scheme}]'"
        )
    return epath.Path(address(path))


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return `located(path)` as an absolute path. (The `absolute` of etils treats a bucket address as a relative path.)"""
    found = located(path)
    return found if is_remote(path) else found.absolute()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically. With two concurrent writers, the later one wins. An OSError names the path, also if the disk is full."""
    if is_remote(path):
        path.write_bytes(content)  # An object in a bucket appears only when it is complete.
        return
    with new_file(path, alone=False) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def new_file(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """Yield the path of an empty temporary file; it replaces `path` when the block ends without an error.

    Args:
        path: File to write, on this machine.
        alone: Raise an error while another process writes the file.

    Raises:
        PlamoError: `path` is not on this machine, or another process is writing it.
        OSError: The file cannot be written, for example because the disk is full. The message names `path`.
    """
    require_local(path)
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
    """Yield an empty temporary folder. It becomes `path` when the block ends without an error, and is removed otherwise.

    Args:
        path: Folder to create, on this machine. It must not exist or must be empty.
        replace: Replace an existing folder.

    Raises:
        PlamoError: `path` is not empty, not on this machine, a mount point or the current folder, or another process is writing it.
            Nothing was changed.
        OSError: The folder cannot be written, for example because the disk is full. The message names `path`.
    """
    require_local(path)
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
            _remove_folder(partial)
            os.close(lock)


def _remove_folder(folder: Path) -> None:
    """Remove a folder that background threads may still write to: Orbax and TensorStore finish other files after one has failed."""
    for _ in range(30):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


@contextlib.contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """Create the parent folders of a path. After an error, remove the created ones that are empty."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def require_local(path: str | os.PathLike[str]) -> None:
    """Raise PlamoError if a path that is to be written is in a bucket."""
    if is_remote(path):
        raise PlamoError(
            f"{address(path)} is in a bucket: write to a local path, and copy the result to the bucket afterwards"
        )


def require_empty(folder: Path, *, replaced: bool = True) -> None:
    """Raise PlamoError unless a folder is on this machine, and does not exist or is empty. Call this before any work is done.

    Args:
        folder: Folder that will be written.
        replaced: An existing folder is replaced, which would fail for a mount point, and leave a shell in a folder that is gone.
    """
    require_local(folder)
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise PlamoError(f"{folder} already exists: it must not exist, or it must be empty. Choose another folder")
    if replaced and folder.exists():
        reason = "a mount point" if os.path.ismount(folder) else "the current folder" if folder.samefile(".") else None
        if reason:
            raise PlamoError(f"{folder} is {reason}, which cannot be replaced. Choose a new folder inside it")


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder against other processes until the block or this process ends. Do nothing for a bucket, which has no locks.

    The lock is held on the file `.lock` in the folder; the file is not removed.

    Raises:
        PlamoError: Another process holds the lock. The message names the process.
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
            message = f"{folder} is in use by another process ({holder}). Wait until it ends, or stop it"
            raise PlamoError(message) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def allocate(path: Path) -> None:
    """Reserve disk space for the whole length of a file. An OSError reports a full disk.

    Without this, a process that writes to a memory map on a full disk is killed by SIGBUS.
    """
    with path.open("r+b") as file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
            return
        # macOS has no such call. Writing a block again allocates it.
        for start in range(0, size, 1 << 20):
            os.pwrite(descriptor, os.pread(descriptor, 1 << 20, start), start)


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, reports that the disk or the quota is full."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors, TensorStore and ArrayRecord report the system error as text.
        if re.search(r"ENOSPC|EDQUOT|No space left on device|Disk quota exceeded", str(current)):
            return True
        current = current.__cause__ or current.__context__
    return False


@contextlib.contextmanager
def naming_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Replace the various errors of a full disk by an OSError with the path that the user gave. Other errors are raised unchanged."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        message = f"{path} could not be written: the disk is full. Free some space and run the command again"
        raise OSError(message) from error


def _claim(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Create and lock a temporary file or folder beside `path`. Return its path and the file descriptor that holds the lock.

    Two writers that start within a millisecond may both pass. Their temporary names differ, and `_move_into_place` lets one win.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    # It gets its final temporary name only after it is locked. Otherwise another process could take its writer for dead and remove it.
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
    """Remove the temporaries of `path` whose writers are dead. If `alone`, raise PlamoError if a writer is alive."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.partial(\.old)?")
    for other in path.parent.iterdir():
        if not pattern.fullmatch(other.name):
            continue
        try:
            held = _try_lock(other)
        except FileNotFoundError:  # Its writer has just renamed it into place.
            continue
        if held is None:
            if alone:
                raise PlamoError(
                    f"{path} is being written by another process. Wait until it ends, or choose another path"
                )
            continue
        if other.suffix == ".old" and not path.exists():
            # A writer was killed between the two renames of a replacement. Restore the old content.
            os.rename(other, path)
        elif other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        else:
            other.unlink(missing_ok=True)
        os.close(held)


def _try_lock(path: Path) -> int | None:
    """Lock a file or folder and return the file descriptor that holds the lock; None if another process holds it."""
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
            message = f"{path} already exists: another process created it in the meantime. Choose another path"
            raise PlamoError(message) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, content: bytes) -> None:
    """Append to a file; create it if needed. In a bucket the whole object is rewritten, so use this for small files only."""
    if is_remote(path):
        path.write_bytes((path.read_bytes() if path.exists() else b"") + content)
        return
    with path.open("ab") as file:
        file.write(content)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


class Mirror:
    """A local folder for files that are written in small pieces. If the target folder is in a bucket, `upload` copies them there.

    Args:
        folder: Target folder of the files, local or in a bucket.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._target = located(folder)
        self._remote = is_remote(folder)
        self.folder = Path(tempfile.mkdtemp(prefix="plamo2-")) if self._remote else self._target
        """Local folder to write into."""

    def download(self, name: str) -> None:
        """Download a file from the target folder, if it exists."""
        if self._remote and (self._target / name).exists():
            (self.folder / name).write_bytes((self._target / name).read_bytes())

    def clear(self, name: str) -> None:
        """Remove a subfolder here and in the target folder."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        if self._remote and (self._target / name).exists():
            (self._target / name).rmtree()

    def upload(self) -> None:
        """Copy all files to the target folder."""
        if self._remote and self.folder.is_dir():
            for path in files_below(self.folder):
                target = self._target / path.relative_to(self.folder).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def close(self) -> None:
        """Upload, and remove the local folder if it was only a copy."""
        self.upload()
        if self._remote:
            shutil.rmtree(self.folder, ignore_errors=True)
