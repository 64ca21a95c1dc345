"""The short form of experiments/chaos/pipeline.py: a small pipeline, killed while it starts and while it trains."""

import random
import runpy
from pathlib import Path

import pytest
from pipeline_material import write_trained

CHAOS = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "chaos" / "pipeline.py"))


def test_kills_at_random_times_change_no_output(tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_trained()
    CHAOS["finish"](tmp_path / "whole", Path("p.py"))
    kills = []
    for longest in (6.0, 14.0):
        kills += CHAOS["kill_at_random"](tmp_path / "killed", Path("p.py"), 1, longest, random.Random(2))
    assert kills
    CHAOS["finish"](tmp_path / "killed", Path("p.py"))
    count, differ = CHAOS["compare"](tmp_path / "whole" / "runs", tmp_path / "killed" / "runs")
    assert differ == []
    assert count > 8


@pytest.mark.parametrize("name", ["ids.txt", "merged/model.safetensors", "model/checkpoints/2"])
def test_the_comparison_sees_what_differs(tmp_path, monkeypatch, name):
    for folder in ("whole", "other"):
        (tmp_path / folder).mkdir()
        for each in ("ids.txt", "merged/model.safetensors", "model/checkpoints/2/x", "model/tensorboard/x"):
            path = tmp_path / folder / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1")
    changed = tmp_path / "other" / name
    if changed.is_dir():
        (changed / "x").unlink()
        changed.rmdir()
        changed.parent.rmdir()
    else:
        changed.write_text("2")
    (tmp_path / "other" / "model" / "tensorboard" / "x").write_text("2")
    monkeypatch.setitem(CHAOS["same"].__globals__, "_same_params", lambda *arguments: True)
    expected = "model/checkpoints" if name.startswith("model") else name
    assert CHAOS["compare"](tmp_path / "whole", tmp_path / "other")[1] == [expected]
