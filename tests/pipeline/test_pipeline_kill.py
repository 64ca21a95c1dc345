"""The short form of experiments/chaos/pipeline.py: a small pipeline, killed while it starts and while it trains."""

import random
import runpy
import time
from pathlib import Path

from pipeline_material import write_trained

CHAOS = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "chaos" / "pipeline.py"))


def test_kills_at_random_times_change_no_output(tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_trained()
    begun = time.monotonic()
    CHAOS["finish"](tmp_path / "whole", Path("p.py"))
    longest = time.monotonic() - begun
    kills = CHAOS["kill_at_random"](tmp_path / "killed", Path("p.py"), 2, longest, random.Random(3))
    assert kills
    CHAOS["finish"](tmp_path / "killed", Path("p.py"))
    count, differ = CHAOS["compare"](tmp_path / "whole" / "runs", tmp_path / "killed" / "runs")
    assert differ == []
    assert count > 8


def test_the_comparison_sees_what_differs_and_no_logs(tmp_path):
    files = ["ids.txt", "merged/model.safetensors", "model/tensorboard/x", ".pipeline/ids.json", "only.txt"]
    for folder in ("whole", "other"):
        for name in files[: 5 if folder == "whole" else 4]:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1" if name == "ids.txt" else f"{folder}")
    count, differ = CHAOS["compare"](tmp_path / "whole", tmp_path / "other")
    assert (count, differ) == (3, ["merged/model.safetensors", "only.txt"])
