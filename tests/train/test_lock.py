"""Two runs of one name: the second is refused before it touches anything, and the first goes on undisturbed."""

import dataclasses
import subprocess
import sys

import pytest

from plamo2_jax import checkpoint
from plamo2_jax.storage import lock_folder
from plamo2_jax.train.run_folder import TrainingError, lock
from support.models import tiny
from support.runs import finish, record, start, wait_for, write_config

HELD = """
import pathlib, time
from plamo2_jax.train.step_metrics import StepMetrics
add = StepMetrics.add
def held(self, step, metrics):
    while step == 5 and not pathlib.Path({gate!r}).exists():
        time.sleep(0.1)
    add(self, step, metrics)
StepMetrics.add = held
"""
"""A preamble that stops a run after its first checkpoint, until a file appears."""
# One layer of attention compiles fast.
MODEL = tiny(num_hidden_layers=1)


def state_of(folder):
    """Names, sizes and times of what does not grow while a run trains."""
    return {
        path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file() and path.suffix != ".jsonl"
    }


def test_the_second_of_two_runs_is_refused_and_the_first_goes_on(make_config, tmp_path):
    config = make_config("twice", model=MODEL, output=tmp_path, heldout={})
    file = write_config(config, tmp_path)
    gate = tmp_path / "gate"
    first = start(file, preamble=HELD.format(gate=str(gate)))
    wait_for(lambda: checkpoint.latest_step(config.folder) == 4, first)
    before = state_of(config.folder)
    status, lines = finish(start(file))
    assert status == 2
    (line,) = lines
    assert line.startswith(f"plamo2 pretrain: {config.folder} is in use by another process")
    assert state_of(config.folder) == before
    gate.touch()
    assert finish(first) == (0, [])
    assert [line["step"] for line in record(config) if "loss" in line] == list(range(1, 13))
    # Its lock is gone.
    with lock_folder(config.folder):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    program = "import sys\nfrom plamo2_jax.storage import lock_folder\nwith lock_folder(sys.argv[1]): print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        with pytest.raises(TrainingError, match="is in use by another process"), lock(tmp_path):
            pass
        holder.kill()
    with lock(tmp_path):
        pass


def test_a_run_that_begins_is_locked_before_anything_is_written(make_config, tmp_path, capsys):
    """Another process that made the folder a moment ago holds the lock."""
    from plamo2_jax.cli.main import main

    config = make_config("begun", model=MODEL, output=tmp_path, heldout={})
    file = write_config(config, tmp_path)
    with lock_folder(config.folder):
        assert main(["pretrain", str(file)]) == 2
        assert "is in use by another process" in capsys.readouterr().err
        assert [path.name for path in config.folder.iterdir()] == [".lock"]
    # Refused for another reason, a run that does not exist leaves nothing at all.
    other = write_config(dataclasses.replace(config, name="none", fork=tmp_path / "nowhere@1"), tmp_path)
    assert main(["pretrain", str(other)]) == 2
    assert not (tmp_path / "none").exists()
