"""A local folder with copies of files of buckets. It has a largest size, and all processes of a host can share it.

A file is downloaded under a temporary name, compared with its size and checksum, and renamed. A reader holds a shared lock (flock) on each
copy that it uses, so no process removes it. If a download needs room, the copies that were used least recently and that nobody uses are
removed. The lock `.room` protects the accounting, and `.NAME.lock` lets one of several processes download a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

from plamo2_jax.data.streams import first_line
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import address, allocate, files_below, is_full_disk, new_file

_CHUNK = 8 << 20
"""Bytes read from a bucket at a time."""
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.partial")


class CachedFile:
    """A copy in the cache. It stays there as long as this object exists."""

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self._release = weakref.finalize(self, os.close, descriptor)


class ShardCache:
    """The cache.

    Args:
        folder: Folder on this machine. It is created if it does not exist.
        limit: Largest sum of the sizes of all copies, in bytes.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int):
        self.folder, self.limit = Path(folder).absolute(), limit

    def fetch(self, source: Path, name: str, size: int, checksum: str | None = None) -> CachedFile:
        """Return a copy of a file of a bucket, which is downloaded unless the cache has it.

        Args:
            source: The file in the bucket.
            name: Path of the copy, relative to the cache. It must change if the content changes.
            size: Size of the file in bytes.
            checksum: BLAKE2b-256 of the file in hexadecimal digits, if it is known.

        Raises:
            PlamoError: The file cannot be read, has another size or checksum, or has no room in the cache.
            OSError: The copy cannot be written, for example because the disk is full.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            if (found := _use(path, size)) is not None:
                return found
            with _locked(path.with_name(f".{path.name}.lock")):
                # Another process may have downloaded it in the meantime.
                if (found := _use(path, size)) is not None:
                    return found
                self._download(source, path, size, checksum)

    def _download(self, source: Path, path: Path, size: int, checksum: str | None) -> None:
        with new_file(path, alone=False) as partial:
            with _locked(self.folder / ".room"):
                self._make_room(source, size)
                os.truncate(partial, size)
            allocate(partial)
            digest, count = hashlib.blake2b(digest_size=32), 0
            with naming_bucket(source), source.open("rb") as file, partial.open("r+b") as copy:
                while chunk := file.read(_CHUNK):
                    count += len(chunk)
                    if count > size:
                        break
                    digest.update(chunk)
                    copy.write(chunk)
            if count != size:
                found = f"more than {size}" if count > size else count
                raise PlamoError(
                    f"{address(source)} has {found} bytes: it must have {size}. Upload the folder of shards again"
                )
            if checksum is not None and digest.hexdigest() != checksum:
                raise PlamoError(
                    f"{address(source)} has the BLAKE2b checksum {digest.hexdigest()[:12]}..., but the "
                    f"manifest lists {checksum[:12]}.... Upload the folder of shards again"
                )

    def _make_room(self, source: Path, size: int) -> None:
        """Remove copies that nobody uses, the least recently used first, until a file of `size` bytes has room."""
        copies, total = [], 0
        for path in files_below(self.folder):
            with contextlib.suppress(FileNotFoundError):  # Another process has renamed or removed it.
                if _TEMPORARY.fullmatch(path.name):
                    # The temporary file of a dead process has no lock.
                    total += 0 if _remove_unused(path) else path.stat().st_size
                elif not path.name.startswith("."):
                    stat = path.stat()
                    copies.append((stat.st_mtime_ns, stat.st_size, path))
                    total += stat.st_size
        for _, bytes_, path in sorted(copies):
            if total + size <= self.limit:
                return
            if _remove_unused(path):
                total -= bytes_
        if total + size > self.limit:
            raise PlamoError(
                f"{self.folder} has no room for {address(source)} ({size / 2**30:.3g} GiB): data.cache_gib allows "
                f"{self.limit / 2**30:.3g} GiB, and files in use have {total / 2**30:.3g} GiB. Raise data.cache_gib, or use "
                "data.packing=per_process, with which a host reads only its share"
            )


@contextlib.contextmanager
def naming_bucket(source: Path) -> Iterator[None]:
    """Replace the various errors of a bucket, such as those of the network and of credentials, by a PlamoError that names the file."""
    try:
        yield
    except PlamoError:
        raise
    except FileNotFoundError:
        raise PlamoError(f"{address(source)} does not exist. Check the name of the folder and of the bucket") from None
    except Exception as error:
        if is_full_disk(error):
            raise
        reason = first_line(error) or type(error).__name__
        raise PlamoError(
            f"{address(source)} cannot be read: {reason}. Check the network and the credentials for the bucket"
        ) from error


def _use(path: Path, size: int) -> CachedFile | None:
    """Lock a copy against removal; None if the cache does not have it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with contextlib.suppress(FileNotFoundError):
        # It may have been removed between opening and locking.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)) and os.fstat(descriptor).st_size == size:
            os.utime(path)  # The time of the last use.
            return CachedFile(path, descriptor)
    os.close(descriptor)
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a file unless somebody holds a lock on it. Return whether it is gone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, for which this waits. It ends with the block, and with the process."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
