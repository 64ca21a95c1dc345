"""Two runs of one name: the second is refused before it touches anything, and the first goes on undisturbed."""

import dataclasses

from run_material import SLOW, finish, record, start, wait_for, write_config

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.storage import lock_folder
from plamo2_jax.train.metrics import read_metrics

# One layer of attention compiles fast.
MODEL = preset("tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=1, mamba_num_heads=2, vocab_size=320)


def state_of(folder):
    """Names, sizes and times of what does not grow while a run trains."""
    return {
        path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file() and path.suffix != ".jsonl"
    }


def test_the_second_of_two_runs_is_refused_and_the_first_goes_on(make_config, tmp_path):
    config = make_config("twice", model=MODEL, output=tmp_path, heldout={})
    file = write_config(config, tmp_path)
    first = start(file, preamble=SLOW)
    wait_for(lambda: read_metrics(config.folder / "metrics.jsonl"), first)
    before = state_of(config.folder)
    status, lines = finish(start(file))
    assert status == 2
    (line,) = lines
    assert line.startswith(f"plamo2 pretrain: {config.folder} is in use by another process")
    assert state_of(config.folder) == before
    assert first.poll() is None
    wait_for(lambda: checkpoint.latest_step(config.folder) is not None, first)
    # The lock of a killed process is gone with it.
    first.kill()
    finish(first)
    status, lines = finish(start(file))
    assert (status, lines) == (0, [])
    assert [line["step"] for line in record(config) if "loss" in line] == list(range(1, 13))


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
