"""Paths of this machine and of buckets."""

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
    with pytest.raises(ValueError, match=r"gs://bucket/runs needs the package gcsfs: pip install 'etils\[epath-gcs\]'"):
        storage.located(Path("gs://bucket/runs"))


def test_files_are_whole_and_grow(tmp_path):
    storage.write_whole(tmp_path / "a", b"one")
    storage.append(tmp_path / "a", b" two")
    storage.append(tmp_path / "b", b"new")
    assert {path.name: path.read_bytes() for path in storage.files_below(tmp_path)} == {"a": b"one two", "b": b"new"}
