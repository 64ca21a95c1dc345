"""Kill a pipeline again and again, all over its work, and compare all that it makes with what one makes that nobody touched."""

from __future__ import annotations

import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from killing import Command, main

from plamo2_jax import checkpoint
from plamo2_jax.model.plamo2 import Plamo2, abstract_params
from plamo2_jax.pipeline.files import LOGS
from plamo2_jax.pipeline.state import FOLDER
from plamo2_jax.storage import files_below
from plamo2_jax.train.metrics import METRICS, read_metrics

ROOT = Path(__file__).resolve().parents[2]
SHORT = Path(__file__).with_name("short_demo.py")
WITH_TIMES = frozenset({"report.html"})
"""Outputs that hold times of day or durations."""
HEAD = re.compile(r"^\[(\d+)/\d+\] (\w+): (.*)$", re.MULTILINE)
"""What a pipeline says when a stage begins, and when it is done: number, name, why or how long."""


def command(folder: Path, file: Path) -> Command:
    """`plamo2 pipeline` in a folder, with compiled programs of its own: so a stage takes in one folder what it takes in another."""
    return Command(folder, ("pipeline", str(file)), folder / "compiled")


def durations(said: str) -> list[float]:
    """Seconds of each stage, in order, by what an undisturbed pipeline said."""
    return [float(what.split()[2]) for _, _, what in HEAD.findall(said) if what.startswith("done in")]


def moments(took: Sequence[float], kills: int, rng: random.Random) -> list[tuple[int, float]]:
    """Moments to kill at, one drawn from each of so many equal parts of the time that the stages took together.

    Returns:
        The number of a stage from 1, and seconds in it; in one that the kill before hit too, seconds since that.
    """
    times = [(part + rng.random()) / kills * sum(took) for part in range(kills)]
    found, begin = [], 0.0
    for number, seconds in enumerate(took, start=1):
        inside = [time for time in times if begin <= time < begin + seconds]
        found += [(number, time - before) for before, time in zip([begin, *inside], inside, strict=False)]
        begin += seconds
    return found


def progress(said: str) -> float:
    """Number of the stage that a pipeline is at by what it said, and a half where that is done."""
    *_, (number, _, what) = [("0", "", ""), *HEAD.findall(said)]
    return int(number) + what.startswith("done in") / 2


def kill_at(
    pipeline: Command, moments: Sequence[tuple[int, float]], on_end: Callable[[], None] = lambda: None
) -> list[dict]:
    """SIGKILL a pipeline at each of these moments, or at once where their stage is over; says where each kill hit.

    `on_end` is called when it got to its end in between; it is then begun anew, so that each kill hits one with work to do.
    """
    found = []
    for number, seconds in moments:
        while not pipeline.kill(
            lambda number=number: progress(pipeline.said()) >= number,
            seconds,
            lambda number=number: progress(pipeline.said()) > number,
        ):
            on_end()
            shutil.rmtree(pipeline.folder / "runs")
        *_, (at, name, what) = HEAD.findall(pipeline.said())
        found.append({"stage": number, "seconds": round(seconds, 2), "hit": f"[{at}] {name}: {what}"})
        print(f"kill {len(found)}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def outputs(home: Path) -> dict[str, Path]:
    """What a pipeline made, by path in its home: files, and folders of checkpoints as one; without logs and the pipeline's records."""
    found = {}
    for path in files_below(home):
        parts = path.relative_to(home).parts
        if parts[0] == FOLDER or LOGS.intersection(parts) - {METRICS} or parts[-1] in (*WITH_TIMES, ".lock"):
            continue
        if checkpoint.CHECKPOINTS in parts:
            parts = parts[: parts.index(checkpoint.CHECKPOINTS) + 1]
        found["/".join(parts)] = home.joinpath(*parts)
    return found


def same(left: Path, right: Path) -> bool:
    """Whether two outputs are the same: the parameters of all checkpoints, the losses in a log, the bytes of any other file."""
    if left.name == checkpoint.CHECKPOINTS:
        runs = left.parent, right.parent
        steps = checkpoint.steps(runs[0])
        return steps == checkpoint.steps(runs[1]) and all(_same_params(*runs, step) for step in steps)
    if left.name == METRICS:
        losses = [
            {line["step"]: line["loss"] for line in read_metrics(path) if "loss" in line} for path in (left, right)
        ]
        return losses[0] == losses[1]
    return left.read_bytes() == right.read_bytes()


def _same_params(left: Path, right: Path, step: int) -> bool:
    model = Plamo2(checkpoint.read_model_config(left))
    params = [checkpoint.restore_params(run, abstract_params(model), step) for run in (left, right)]
    equal = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), *params)
    return all(jax.tree.leaves(equal))


def compare(left: Path, right: Path) -> tuple[int, list[str]]:
    """How many outputs two homes have between them, and which differ or are missing in one."""
    ours, theirs = outputs(left), outputs(right)
    names = sorted(ours.keys() | theirs.keys())
    differ = [name for name in names if not (name in ours and name in theirs and same(ours[name], theirs[name]))]
    return len(names), differ


def campaign(folder: Path, kills: int, rng: random.Random) -> dict:
    """One pipeline that nobody touches, and one that is killed."""
    whole, killed = folder / "whole", folder / "killed"
    for place in (whole, killed):
        place.mkdir()
        (place / "configs").symlink_to(ROOT / "configs")
    undisturbed, disturbed = command(whole, SHORT), command(killed, SHORT)
    undisturbed.finish()
    took = durations(undisturbed.said())
    ends: list[dict] = []

    def on_end() -> None:
        count, differ = compare(*(place / "runs" / "demo" for place in (whole, killed)))
        ends.append({"outputs": count, "differ": differ})

    found = kill_at(disturbed, moments(took, kills, rng), on_end)
    disturbed.finish()
    on_end()
    return {"seconds_of_stages": took, "kills": found, "ends": ends}


if __name__ == "__main__":
    main(__doc__, "pipeline", campaign)
