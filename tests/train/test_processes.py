"""Jobs of two processes on this machine: the run of one, and what happens when one of them is killed."""

import dataclasses
import json
import shutil
import signal

import pytest

from plamo2_jax import checkpoint
from plamo2_jax.train.metrics import read_metrics
from plamo2_jax.train.processes import PEER_LOST, ProcessesConfig
from support.models import tiny
from support.runs import assert_same_params, finish, held, job, params_of, record, start, wait_for, write_config

pytestmark = pytest.mark.slow


def test_a_job_of_two_is_the_run_of_one_whatever_ends_it(make_config, tmp_path):
    """One run, handed on: two processes, one of which is asked to stop; one process, killed; two, the second killed; two, the first
    killed; two, to the end. It is the run of one process with as many devices, to the last bit.

    Each step has a local checkpoint. The third job restores the one that a single process wrote for both, the fourth a persistent one
    because the disk of its second process is lost, and the fifth those of both processes.

    Whoever is signalled or killed waits for it behind a step, so that it does not matter when the signal comes.
    """
    data = make_config("job").data
    data = dataclasses.replace(
        data, packing="per_process", packing_shards=2
    )  # The positions of both processes are gathered.
    alone = make_config(
        "job", model=tiny(num_hidden_layers=1), output=tmp_path / "alone", steps=16, heldout={}, data=data
    )
    alone.output.mkdir()
    status, lines = finish(start(write_config(alone, alone.output), devices=2))
    assert status == 0, lines

    disk = tmp_path / "disk"
    config = dataclasses.replace(alone, output=tmp_path, local_checkpoints=disk, local_every=1)
    file = write_config(config, tmp_path)
    # A machine that is busy with other things may keep a process from beating for long.
    heartbeat = ("--distributed.heartbeat-seconds", "60")

    def logged(step):
        return lambda: any(line["step"] >= step for line in read_metrics(config.folder / "metrics.jsonl"))

    def held_locally(step, count):
        return lambda: len([path for path in disk.glob(f"job-*/{step}-*-p?") if path.is_dir()]) == count

    def restores():
        found = json.loads((config.folder / "goodput.json").read_text())["restores"]
        return {tier: sums["restores"] for tier, sums in found.items()}

    processes = job(file, preambles=("", held(4)))
    wait_for(logged(3), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        status, lines = finish(process)
        assert status == 143, lines
        assert any("the same command resumes the run" in line for line in lines)
    assert checkpoint.latest_step(config.folder) == 4

    single = start(file, devices=2, preamble=held(7))
    wait_for(held_locally(6, 1), single)
    single.kill()
    finish(single)
    assert checkpoint.latest_step(config.folder) == 4

    for victim, saved in ((1, 8), (0, 12)):
        hold = held(saved + 2)
        processes = job(file, *heartbeat, preambles=(hold, "") if victim == 0 else ("", hold))
        wait_for(lambda saved=saved: checkpoint.latest_step(config.folder) >= saved, processes[0])
        wait_for(held_locally(saved + 1, 2), processes[0])
        processes[victim].kill()
        finish(processes[victim])
        # It waits in a collective, and sees it break; in any other place jax's own heartbeat would abort it.
        status, lines = finish(processes[1 - victim])
        assert status == PEER_LOST, lines
        assert lines[-1].startswith(f"plamo2 pretrain: process {1 - victim} of 2: "), lines
        assert "another process has ended" in lines[-1]
        assert sum("another process has ended" in line for line in lines) == 1, lines
        assert checkpoint.latest_step(config.folder) == saved
        if victim == 1:
            assert restores() == {"persistent": 1, "local": 1}
            shutil.rmtree(next(disk.glob("job-*/9-*-p1")))

    for process in job(file):
        status, lines = finish(process)
        assert status == 0, lines
    assert restores() == {"persistent": 2, "local": 2}
    assert list(disk.iterdir()) == []
    assert record(config) == record(alone)
    assert_same_params(params_of(config), params_of(alone))


@pytest.mark.parametrize(
    "fields",
    [
        {"coordinator": "host"},
        {"coordinator": "host:1", "process_id": 0},
        {"coordinator": "host:1", "process_id": 2, "process_count": 2},
        {"coordinator": "auto", "process_id": 0},
        {"process_count": 2},
        {"heartbeat_seconds": 0},
    ],
)
def test_a_bad_field_is_named(fields):
    with pytest.raises(ValueError, match=r"distributed\.\w+=.* is not allowed: it must be"):
        ProcessesConfig(**fields)
