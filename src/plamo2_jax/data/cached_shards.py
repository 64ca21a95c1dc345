"""Shards in a bucket: the manifest is read at once, and a file of records is copied to the cache when its first document is read."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax.data.shard_cache import CachedFile, ShardCache, naming_bucket
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import address


class CachedFolder:
    """Copies of the files of a folder of shards in a bucket. Their names contain a hash of the manifest, so a folder that was written again
    is copied again.

    Args:
        cache: The cache.
        folder: The folder in the bucket.
        manifest: Name of its manifest.
        max_bytes: Largest size of the manifest.

    Raises:
        PlamoError: The manifest cannot be read.
    """

    def __init__(self, cache: ShardCache, folder: Path, manifest: str, max_bytes: int):
        self.folder = folder
        self._cache = cache
        with naming_bucket(folder / manifest), (folder / manifest).open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise PlamoError(f"{address(folder / manifest)} is too large: at most {max_bytes:,} bytes are allowed")
        self.manifest = content
        """Bytes of the manifest."""
        digest = hashlib.blake2b(address(folder).encode() + b"\0" + content, digest_size=8).hexdigest()
        self._name = f"{folder.name}-{digest}"

    def fetch(self, name: str, size: int | None = None, checksum: str | None = None) -> CachedFile:
        """Return the copy of a file. Its size is read from the bucket if it is not given. Raise PlamoError as `ShardCache.fetch`."""
        source = self.folder / name
        if size is None:
            with naming_bucket(source):
                size = int(source.stat().length)
        return self._cache.fetch(source, f"{self._name}/{name}", size, checksum)


class CachedRecords:
    """Random access to the records of all shards of a folder: `len(records)`, `records[i]`. It can be pickled and used in several threads.

    Args:
        folder: The folder.
        shards: Entries of the manifest: name, documents, size and, if known, blake2b of each shard.
    """

    def __init__(self, folder: CachedFolder, shards: Sequence[dict[str, Any]]):
        self._folder, self._shards = folder, list(shards)
        self._ends = np.cumsum([shard["documents"] for shard in shards])
        self._prepare()

    def _prepare(self) -> None:
        self._locks = [threading.Lock() for _ in self._shards]
        self._open: dict[int, tuple[Any, CachedFile]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_locks", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        """Return record `index`.

        Raises:
            PlamoError: Its shard cannot be copied, or holds another number of records than the manifest states.
            RuntimeError: The record is damaged.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        with self._locks[number]:
            opened = self._open.get(number) or self._open_shard(number)
        return opened[0][index - (int(self._ends[number - 1]) if number else 0)]

    def _open_shard(self, number: int) -> tuple[Any, CachedFile]:
        import grain.sources

        shard = self._shards[number]
        copy = self._folder.fetch(shard["name"], shard["size"], shard.get("blake2b"))
        records = grain.sources.ArrayRecordDataSource([str(copy.path)])
        if len(records) != shard["documents"]:
            raise PlamoError(
                f"{address(self._folder.folder / shard['name'])} has {len(records)} records, but the manifest "
                f"lists {shard['documents']}. Upload the folder of shards again"
            )
        self._open[number] = records, copy
        return self._open[number]
