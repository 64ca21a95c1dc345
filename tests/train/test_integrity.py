"""Checkpoints that are not what was written: found, named, set aside, and done without."""

import dataclasses
import json
import math
import re
import shutil

import jax
import pytest

import plamo2_jax
from plamo2_jax import checkpoint, manifest
from plamo2_jax.checkpoint import CheckpointError
from plamo2_jax.train import integrity, prepare
from plamo2_jax.train.loop import train
from support.runs import assert_same_params, finish, params_of, record, start, stop_after, write_config


def largest(folder):
    """The largest file of a checkpoint: one that holds arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(step):
    path = largest(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(step):
    path = largest(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete_a_file(step):
    largest(step).unlink()


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def half_written(step):
    """As if it had been copied here and the copying had stopped: no manifest yet, and not all items."""
    (step / manifest.MANIFEST).unlink()
    shutil.rmtree(step / "training")


DAMAGES = {
    truncate: r"has \d+ bytes, expected \d+",
    flip_a_byte: "does not match its checksum",
    delete_a_file: "is missing",
    empty: "is empty",
    half_written: "cannot resume from",
}


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A copy of the uninterrupted run that may be damaged."""
    config, _ = uninterrupted
    shutil.copytree(config.folder, tmp_path / config.name)
    return dataclasses.replace(config, output=tmp_path)


def test_a_manifest_says_what_wrote_the_checkpoint(uninterrupted):
    config, _ = uninterrupted
    for step in (4, 8, 12):
        folder = config.folder / "checkpoints" / str(step)
        written = json.loads((folder / "manifest.json").read_text())
        assert written["plamo2_jax"] == plamo2_jax.__version__
        assert written["config"]["name"] == config.name
        assert written["processes"] == 1
        assert {name.split("/")[0] for name in written["files"]} == {"params", "training", "data"}
        assert manifest.find_damage(folder) is None


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_newest_checkpoint_is_named_and_done_without(uninterrupted, copy, capfd, damage):
    expected, _ = uninterrupted
    newest = copy.folder / "checkpoints" / "12"
    damage(newest)
    assert train(copy).step == 12
    lines = [line for line in capfd.readouterr().err.splitlines() if "is damaged" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{newest} is damaged: ")
    assert lines[0].endswith("it is kept as 12.damaged")
    assert re.search(DAMAGES[damage], lines[0])
    assert (copy.folder / "checkpoints" / "12.damaged").is_dir()
    assert record(copy) == record(expected)
    assert_same_params(params_of(copy), params_of(expected))


def test_with_none_left_the_run_says_so_and_does_not_start_over(copy):
    for step in checkpoint.steps(copy.folder):
        flip_a_byte(copy.folder / "checkpoints" / str(step))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no intact checkpoint.*12\.damaged, 4\.damaged, 8\.damaged"):
            train(copy)


def test_names_of_what_is_set_aside_do_not_collide(tmp_path):
    names = []
    for _ in range(3):
        (tmp_path / "7").mkdir()
        names.append(integrity.set_aside(tmp_path / "7", "damaged").name)
    assert names == ["7.damaged", "7.damaged-2", "7.damaged-3"]


def test_a_full_disk_is_one_line_and_loses_nothing(copy, tmp_path):
    """A limit on the size of files stands for the full disk: small files still fit, arrays do not."""
    shutil.rmtree(copy.folder / "checkpoints" / "12")
    preamble = """
import resource
from plamo2_jax.train.checkpoints import RunCheckpoints
save = RunCheckpoints.save
def save_on_a_full_disk(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    save(*arguments)
RunCheckpoints.save = save_on_a_full_disk
"""
    file = write_config(dataclasses.replace(copy, heldout={}), tmp_path)
    status, lines = finish(start(file, preamble=preamble))
    assert status == 2, lines
    error = [line for line in lines if line.startswith("plamo2 pretrain:")]
    assert len(error) == 1, lines
    assert "the checkpoint of step 12 could not be written" in error[0]
    assert "File too large" in error[0]
    assert "Finished checkpoints in this folder: 4, 8" in error[0]
    assert lines == error
    assert train(copy).step == 12
    assert checkpoint.steps(copy.folder) == [4, 8, 12]


def test_other_numbers_of_devices_go_on(uninterrupted, make_config, tmp_path, monkeypatch):
    """8 devices, then 4, then 1, then 8: each reads what the one before it wrote."""
    config = make_config("devices", output=tmp_path, checkpoint_every=3, heldout={}, max_to_keep=10)
    expected, _ = uninterrupted
    for stop, devices in ((3, 8), (6, 4), (9, 1), (12, 8)):
        monkeypatch.setattr(prepare, "_devices", lambda _, devices=devices: jax.devices()[:devices])
        outcome = train(config, on_step=stop_after(stop))
        assert outcome.step == stop
        manifest = json.loads((config.folder / "checkpoints" / str(stop) / "manifest.json").read_text())
        assert math.prod(manifest["mesh"].values()) == devices
    # The order of sums differs by the number of devices, and nothing else.
    losses = [[line["loss"] for line in record(run) if "loss" in line] for run in (config, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
