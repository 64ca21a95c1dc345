"""Paths of this machine and of buckets."""

import contextlib
import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from plamo2_jax import storage


def test_pathlib_takes_no_slash_away():
    assert storage.address(Path("gs://bucket/runs")) == "gs://bucket/runs"
    assert storage.address("gs://bucket/runs/gs:/x") == "gs://bucket/runs/gs:/x"
    assert storage.address(Path("runs/demo")) == "runs/demo"
    assert storage.is_remote(Path("s3://bucket/runs"))
    assert not storage.is_remote("gs:")
    assert isinstance(storage.located("runs"), Path)


def test_what_reads_buckets_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError,
        match=r"gs://bucket/runs needs the package gcsfs: install this project with the extra gs, as in pip install '.\[gs\]'",
    ):
        storage.located(Path("gs://bucket/runs"))


def test_files_are_whole_and_grow(tmp_path):
    storage.write_whole(tmp_path / "a", b"one")
    storage.append(tmp_path / "a", b" two")
    storage.append(tmp_path / "b", b"new")
    assert {path.name: path.read_bytes() for path in storage.files_below(tmp_path)} == {"a": b"one two", "b": b"new"}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def hold(path, ready, go):
    """Write a folder, and wait in the middle of it; runs in a process of its own."""
    with storage.new_folder(path) as partial:
        (partial / "a").write_bytes(b"half")
        ready.set()
        go.wait(60)
        (partial / "a").write_bytes(b"whole")


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing tmp_path/OUT, and the event that lets it go on."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "OUT", ready, go))
    process.start()
    assert ready.wait(60)
    yield process, go
    process.kill()
    process.join()


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path, writer):
    process, go = writer
    with (
        pytest.raises(ValueError, match="OUT is being written by another process"),
        storage.new_folder(tmp_path / "OUT"),
    ):
        pass
    with storage.new_folder(tmp_path / "OUT2") as partial:  # another target beside it
        (partial / "b").touch()
    go.set()
    process.join()
    assert (tmp_path / "OUT" / "a").read_bytes() == b"whole"
    assert names(tmp_path) == ["OUT", "OUT2"]


def test_what_a_killed_writer_left_is_removed(tmp_path, writer):
    process, _ = writer
    process.kill()
    process.join()
    assert len(names(tmp_path)) == 1
    with storage.new_folder(tmp_path / "OUT") as partial:
        (partial / "a").write_bytes(b"second")
    assert names(tmp_path) == ["OUT"]
    assert (tmp_path / "OUT" / "a").read_bytes() == b"second"
    assert (tmp_path / "OUT").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_bytes(b"old")
    with pytest.raises(ValueError, match="already exists"), storage.new_folder(tmp_path / "old"):
        pass
    for write in (
        storage.new_folder(tmp_path / "new"),
        storage.new_folder(tmp_path / "new", replace=True),
        storage.new_file(tmp_path / "file"),
    ):
        with pytest.raises(RuntimeError), write:
            raise RuntimeError
    assert names(tmp_path) == ["old"]
    with storage.new_folder(tmp_path / "old", replace=True) as partial:
        (partial / "b").write_bytes(b"new")
    assert names(tmp_path / "old") == ["b"]
    assert names(tmp_path) == ["old"]


def test_a_killed_replacement_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_bytes(b"old")
    # What a kill between the two renames of `replace=True` leaves.
    (tmp_path / ".old.00000000.partial").mkdir()
    (tmp_path / "old").rename(tmp_path / ".old.00000000.partial.old")
    with pytest.raises(ValueError, match="already exists"), storage.new_folder(tmp_path / "old"):
        pass
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old" / "a").read_bytes() == b"old"


def test_a_full_disk_is_named_with_the_path(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = ValueError("RESOURCE_EXHAUSTED: Error writing [OS error 28: ENOSPC No space left on device]")
    for error in (full, wrapped):
        with (
            pytest.raises(OSError, match="new could not be written: the disk is full"),
            storage.new_folder(tmp_path / "new"),
        ):
            raise error
        with (
            pytest.raises(OSError, match="file could not be written: the disk is full"),
            storage.new_file(tmp_path / "file"),
        ):
            raise error
    assert names(tmp_path) == []


def test_a_folder_is_locked_for_other_processes(tmp_path):
    script = (
        "import sys, pathlib; from plamo2_jax import storage\nwith storage.lock_folder(sys.argv[1]): print('locked')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with storage.lock_folder(tmp_path / "run"):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"run is in use by another process (process {os.getpid()} on " in second.stderr
        assert second.stdout == ""
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "locked\n"


def test_parents_made_for_a_folder_go_with_it_when_it_fails(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(OSError, match="the disk is full"), storage.new_folder(tmp_path / "kept" / "new" / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == []


def test_a_folder_is_removed_although_a_thread_still_writes_to_it(tmp_path):
    written = threading.Event()

    def keep_writing(folder):
        for number in range(200):
            with contextlib.suppress(OSError):
                (folder / "part").mkdir(parents=True, exist_ok=True)
                (folder / "part" / str(number)).write_bytes(b"x")
            written.set()
            time.sleep(0.001)

    def write():
        with storage.new_folder(tmp_path / "out") as folder:
            threads.append(threading.Thread(target=keep_writing, args=(folder,)))
            threads[0].start()
            written.wait()
            raise RuntimeError("one of several writers failed")

    threads = []
    with pytest.raises(RuntimeError, match="one of several writers failed"):
        write()
    threads[0].join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [storage.new_folder, storage.new_file, storage.require_empty])
def test_a_bucket_is_refused_and_no_folder_of_its_name_appears(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^gs://bucket/out is in a bucket: write to a local path"):
        contextlib.ExitStack().enter_context(write(Path("gs://bucket/out")))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_replaced_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"is the current folder, which cannot be replaced. Choose a new folder inside it$"
    ):
        storage.require_empty(Path("."))
    storage.require_empty(Path("."), replaced=False)
    (tmp_path / "volume").mkdir()
    storage.require_empty(tmp_path / "volume")
    monkeypatch.setattr(storage.os.path, "ismount", lambda path: Path(path).name == "volume")
    with (
        pytest.raises(ValueError, match="volume is a mount point, which cannot be replaced"),
        storage.new_folder("volume"),
    ):
        pass
    assert names(tmp_path) == ["volume"]
