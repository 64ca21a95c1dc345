"""A run whose folder is in a bucket. The bucket is a folder: etils and TensorStore are pointed at it below their gs:// interfaces."""

import dataclasses
from pathlib import Path

import pytest
from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from plamo2_jax.report.page import write_report
from plamo2_jax.train.loop import train
from support.buckets import Bucket, mount
from support.runs import assert_same_params, params_of, record, stop_after


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that is gs://."""
    fake = mount(Bucket(tmp_path / "gs"), monkeypatch)
    # A bucket of the plain kind: asking which would take a network.
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    build = tensorstore_utils.build_kvstore_tspec

    def build_here(directory, *arguments, **options):
        return build(fake.here(directory.replace("gs:/", "gs://").replace(":///", "://")), *arguments, **options)

    monkeypatch.setattr(tensorstore_utils, "build_kvstore_tspec", build_here)
    return fake.folder


def test_a_run_in_a_bucket_stops_and_goes_on(uninterrupted, bucket):
    expected, _ = uninterrupted
    config = dataclasses.replace(expected, output=Path("gs://bucket/runs"))  # Which takes a slash away.
    assert train(config, on_step=stop_after(5)).step == 5
    assert train(config).step == 12
    folder = bucket / "bucket" / "runs" / config.name
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "tokenizer.jsonl", "checkpoints", "metrics.jsonl", "tensorboard", "goodput.json")
    }
    assert record(config) == record(dataclasses.replace(config, output=folder.parent)) == record(expected)
    assert_same_params(params_of(config), params_of(expected))
    assert list((folder / "tensorboard").iterdir())
    assert str(write_report(config.folder)) == f"gs://bucket/runs/{config.name}/report.html"
    assert (folder / "report.html").is_file()
    assert isinstance(config.folder, epath.Path)


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(uninterrupted, bucket, capfd):
    expected, _ = uninterrupted
    config = dataclasses.replace(expected, output=Path("gs://bucket/runs"))
    train(config)
    folder = bucket / "bucket" / "runs" / config.name / "checkpoints"
    manifest = folder / "12" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"blake2b": "', '"blake2b": "0'))
    assert train(config).step == 12
    assert "checkpoints/12 is damaged: " in capfd.readouterr().err
    assert (folder / "12.damaged").is_dir()
    assert record(config) == record(expected)
