"""Shards in a bucket, read through a local cache. The bucket is a folder below etils' gs:// interface."""

import collections
import json
import os
import pickle
import threading
from pathlib import Path

import pytest

from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches, train_iterator
from plamo2_jax.data.shard_cache import ShardCache
from plamo2_jax.data.shards import ShardError, open_shards
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import located
from support.buckets import Bucket, mount
from support.shards import documents_of, write
from support.streams import assert_same, take

LENGTHS = [3 + (7 * i) % 29 for i in range(80)]
ADDRESS = "gs://bucket/text"


class CountingBucket(Bucket):
    """Counts the reads of each file, and can be cut off."""

    def __init__(self, folder):
        super().__init__(folder)
        self.reads = collections.Counter()
        self.online = True

    def __getattr__(self, name):
        operation = super().__getattr__(name)

        def counted(*arguments, **options):
            if not self.online:
                raise ConnectionError("Cannot connect to host storage.googleapis.com:443")
            if name == "open":
                self.reads[os.fspath(arguments[0]).rsplit("/", 1)[-1]] += 1
            return operation(*arguments, **options)

        return counted


@pytest.fixture
def bucket(tmp_path, monkeypatch, letters):
    fake = mount(CountingBucket(tmp_path / "gs"), monkeypatch)
    write(tmp_path / "gs" / "bucket" / "text", documents_of(LENGTHS), letters)
    return fake


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_shards_in_a_bucket_are_those_on_disk(bucket, letters, tmp_path):
    folder = bucket.folder / "bucket" / "text"
    cache = tmp_path / "cache"
    remote, local = (
        DataConfig((MixtureItem(Path(path)),), 16, 4, packing_bins=8, cache=cache) for path in (ADDRESS, folder)
    )
    whole = take(train_iterator(local, letters), 40)
    assert_same(take(train_iterator(remote, letters), 40), whole)
    heldout = [list(heldout_batches(config, config.mixture[0].path, letters)) for config in (remote, local)]
    assert_same(*heldout)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    names = {"lengths.npy", *(shard["name"] for shard in shards)}
    assert {path.name for path in files(cache)} == names
    # Each file is copied once; only the manifest is read again.
    assert bucket.reads == {"manifest.json": 2, **dict.fromkeys(names, 1)}
    # A pickled copy, as in a worker process, uses the same files.
    opened = pickle.loads(pickle.dumps(open_shards(ADDRESS, letters, ShardCache(cache, 1 << 30))))
    assert [opened[i].ids.tolist() for i in range(80)] == [
        letters.encode(d.text).tolist() for d in documents_of(LENGTHS)
    ]
    assert max(bucket.reads[name] for name in names) == 1


def test_a_cache_that_is_too_small_is_refused_at_once(bucket, letters, tmp_path):
    config = DataConfig((MixtureItem(Path(ADDRESS)),), 16, 4, cache=tmp_path / "cache", cache_gib=1e-6)
    with pytest.raises(PlamoError, match=r"cache_gib=1e-06 is not allowed: .* use packing=per_process"):
        train_iterator(config, letters)


def test_folders_that_were_written_again_are_copied_again(bucket, letters, tmp_path):
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    assert len(open_shards(ADDRESS, letters, cache)[0].ids) == LENGTHS[0]
    write(bucket.folder / "bucket" / "text", documents_of([7, 8]), letters)
    assert [len(open_shards(ADDRESS, letters, cache)[i].ids) for i in range(2)] == [7, 8]


def test_several_readers_of_a_host_copy_a_file_once(bucket, tmp_path):
    source = located(ADDRESS) / "shard-00000.arrayrecord"
    size = source.stat().length
    barrier, found = threading.Barrier(6), []

    def read():
        # flock makes no difference between the descriptors of one process and those of several.
        cache = ShardCache(tmp_path / "cache", 1 << 30)
        barrier.wait()
        found.append(cache.fetch(source, "a/shard", size))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.path for each in found}) == 1
    assert found[0].path.read_bytes() == (bucket.folder / "bucket" / "text" / source.name).read_bytes()
    assert bucket.reads[source.name] == 1


def test_the_cache_is_bounded_and_keeps_files_in_use(bucket, tmp_path):
    folder = bucket.folder / "bucket"
    for name in "abcd":
        (folder / name).write_bytes(name.encode() * 1000)
    cache = ShardCache(tmp_path / "cache", 2500)
    fetch = lambda name: cache.fetch(located(f"gs://bucket/{name}"), name, 1000)  # noqa: E731
    a, b = fetch("a"), fetch("b")
    with pytest.raises(PlamoError, match=r"cache has no room for gs://bucket/c .* data\.cache_gib allows .* in use"):
        ShardCache(tmp_path / "cache", 2500).fetch(located("gs://bucket/c"), "c", 1000)
    assert {path.name for path in files(tmp_path / "cache")} == {"a", "b"}
    # The temporary file of a killed process takes no room.
    (tmp_path / "cache" / ".x.0123abcd.partial").write_bytes(bytes(2000))
    os.utime(a.path, (0, 0))
    del a
    c = fetch("c")
    assert {path.name for path in files(tmp_path / "cache")} == {"b", "c"}
    assert not list((tmp_path / "cache").glob(".x*"))
    # Of two unused files, the one that was used least recently is removed.
    os.utime(b.path, (2, 2))
    os.utime(c.path, (1, 1))
    del b, c
    fetch("d")
    assert {path.name for path in files(tmp_path / "cache")} == {"b", "d"}


def test_a_damaged_or_missing_file_is_refused(bucket, letters, tmp_path):
    folder = bucket.folder / "bucket" / "text"
    shard = folder / "shard-00001.arrayrecord"
    data = shard.read_bytes()
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    opened = open_shards(ADDRESS, letters, cache)
    number = opened.manifest["shards"][0]["documents"]
    for damaged, message in (
        (data[:-1] + bytes([data[-1] ^ 1]), r"gs://bucket/text/shard-00001.arrayrecord has the BLAKE2b checksum"),
        (data[:-7], rf"shard-00001.arrayrecord has {len(data) - 7} bytes: it must have {len(data)}"),
        (data + b"1", rf"shard-00001.arrayrecord has more than {len(data)} bytes"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(PlamoError, match=message):
            opened[number]
        assert [path.name for path in files(tmp_path / "cache")] == ["lengths.npy"]
    shard.unlink()
    with pytest.raises(PlamoError, match=r"gs://bucket/text/shard-00001.arrayrecord does not exist"):
        opened[number]
    shard.write_bytes(data)
    assert len(opened[number].ids) == LENGTHS[number]


def test_without_network_or_cache_one_sentence_says_so(bucket, letters, tmp_path):
    opened = open_shards(ADDRESS, letters, ShardCache(tmp_path / "cache", 1 << 30))
    opened[0]
    bucket.online = False
    assert len(opened[0].ids) == LENGTHS[0]
    with pytest.raises(
        PlamoError, match=r"^gs://bucket/text/shard-\d+.arrayrecord cannot be read: Cannot connect .*network"
    ):
        opened[79]
    with pytest.raises(
        PlamoError, match=r"^gs://bucket/text/manifest.json cannot be read: Cannot connect .*credentials"
    ):
        open_shards(ADDRESS, letters, ShardCache(tmp_path / "cache", 1 << 30))
    with pytest.raises(ShardError, match=r"^gs://bucket/text is in a bucket: .* data\.cache \(--data\.cache FOLDER\)$"):
        open_shards(ADDRESS, letters)
