"""The short form of experiments/chaos/pipeline.py: kill a small pipeline in two of its stages."""

import random
import runpy
import sys
from pathlib import Path

import pytest

from support.pipelines import write_trained
from support.xla import xla_flags

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "experiments" / "chaos"
sys.path.append(str(FOLDER))
CHAOS = runpy.run_path(str(FOLDER / "pipeline.py"))


def test_kills_all_over_the_work_change_no_output(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", xla_flags())
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_trained()
    whole, killed = (CHAOS["command"](tmp_path / name, Path("p.py")) for name in ("whole", "killed"))
    whole.finish()
    took = CHAOS["durations"](whole.said())
    assert len(took) == 6
    kills = CHAOS["kill_at"](killed, CHAOS["moments"](took, 2, random.Random(3)))
    assert len(kills) == 2
    killed.finish()
    count, differ = CHAOS["compare"](tmp_path / "whole" / "runs", tmp_path / "killed" / "runs")
    assert differ == []
    assert count > 8


def test_moments_are_one_in_each_part_of_the_work():
    took = [2.0, 0.5, 6.0, 1.5]
    found = CHAOS["moments"](took, 5, random.Random(0))
    times, before = [], (0, 0.0)
    for number, seconds in found:
        times.append(seconds + (before[1] if number == before[0] else sum(took[: number - 1])))
        before = number, times[-1]
    assert [int(time / 2.0) for time in times] == [0, 1, 2, 3, 4]
    assert all(
        sum(took[: number - 1]) <= time < sum(took[:number]) for time, (number, _) in zip(times, found, strict=True)
    )


def test_a_command_that_fails_by_itself_is_no_kill(tmp_path):
    with pytest.raises(SystemExit, match="ended by itself with status 2"):
        CHAOS["command"](tmp_path, Path("nowhere.py")).kill(lambda: False, 0.0)


def test_the_comparison_sees_what_differs_and_no_logs(tmp_path):
    files = ["ids.txt", "merged/model.safetensors", "model/tensorboard/x", ".pipeline/ids.json", "only.txt"]
    for folder in ("whole", "other"):
        for name in files[: 5 if folder == "whole" else 4]:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1" if name == "ids.txt" else f"{folder}")
    count, differ = CHAOS["compare"](tmp_path / "whole", tmp_path / "other")
    assert (count, differ) == (3, ["merged/model.safetensors", "only.txt"])
