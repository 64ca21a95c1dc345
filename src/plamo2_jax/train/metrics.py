"""The log of a run: metrics.jsonl, and the same figures for TensorBoard.

metrics.jsonl is the record: one JSON object a line, `step` (updates made) and `time` (seconds since 1970) in each. Lines are flushed as
they are written, so that a killed run keeps them; those of a run in a bucket get there with each checkpoint. The TensorBoard folder is a
view of it: when a run goes on from a checkpoint, lines past that step are dropped, since they will be written again, and the view is
rebuilt from those that stay.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.summary import Writer

from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import Mirror, located
from plamo2_jax.train.objective import means

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsLog:
    """Writes the log of one run; a context manager.

    Args:
        folder: the run's folder.
        step: the step the run starts from; lines of later steps are dropped.
    """

    def __init__(self, folder: str | os.PathLike[str], step: int = 0):
        self._mirror = Mirror(folder)
        self._folder = self._mirror.folder
        self._mirror.download(METRICS)
        self._open(step)

    def _open(self, step: int) -> None:
        folder = self._folder
        kept = [line for line in read_metrics(folder / METRICS) if line["step"] <= step] if step else []
        self.seconds = sum(line.get("step_seconds", 0.0) for line in kept)
        """Time spent on the steps in the log."""
        partial = folder / f".{METRICS}.partial"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, folder / METRICS)
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._mirror.clear(TENSORBOARD)
        self._tensorboard = Writer(str(folder / TENSORBOARD))
        for line in kept:
            self._show(line)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._tensorboard.close()
        self._mirror.close()

    def drop_after(self, step: int) -> None:
        """Drop the lines of later steps: they did not count."""
        self._file.close()
        self._tensorboard.close()
        self._open(step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line; `flush` makes it last."""
        line = {"step": step, "time": time.time(), **figures}
        self._file.write(json.dumps(line) + "\n")
        self.seconds += figures.get("step_seconds", 0.0)
        self._show(line)

    def flush(self) -> None:
        """Hand everything written so far to the operating system: it outlives this process from here on."""
        self._file.flush()
        self._tensorboard.flush()

    def upload(self) -> None:
        """For a run in a bucket: copy what is written so far there."""
        self.flush()
        self._mirror.upload()

    def _show(self, line: Mapping[str, float]) -> None:
        for name, value in line.items():
            if name not in ("step", "time"):
                self._tensorboard.add_scalar(name, value, line["step"], wall_time=line["time"])


class NoLog:
    """Stands for the log in a process that does not write it."""

    seconds = 0.0

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Nothing."""

    def drop_after(self, step: int) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def upload(self) -> None:
        """Nothing."""


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; none where there is no file. A last line cut off by a kill is passed over.

    Raises:
        ValueError: a line that is not the last is not a JSON object with a step; the message names the file and the line.
    """
    path = located(path)
    if optional_file(path.parent, path.name) is None:
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last newline is empty, or a line that never was finished.
    return [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _parse(path: Path, number: int, line: str) -> dict[str, float]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}, is not valid JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("step"), int):
        raise ValueError(f'{path}, line {number}, must be an object with an integer "step"')
    return value


def step_figures(sums: Mapping[str, float], over: Mapping[str, str]) -> dict[str, float]:
    """The figures of one step that go into the log, from the train step's metrics.

    Sums over predicted tokens become bits a byte, nats a token and accuracy; any other sum is divided by what it is over, which is the
    loss's weight unless `over` says otherwise (see `train.objective.means`).
    """
    figures = {name: sums[name] for name in ("loss", "grad_norm", "learning_rate", "skipped") if name in sums}
    if sums.get("bytes"):
        figures["bits_per_byte"] = sums["nats"] / math.log(2) / sums["bytes"]
    if sums.get("tokens") and "nats" in sums:
        figures["nats_per_token"] = sums["nats"] / sums["tokens"]
        figures["accuracy"] = sums["correct"] / sums["tokens"]
    others = sums.keys() - figures.keys() - {"nats", "tokens", "bytes", "correct"}
    return figures | means({name: sums[name] for name in others}, over)
