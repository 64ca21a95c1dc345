"""The log of a run: metrics.jsonl, and the same figures for TensorBoard.

metrics.jsonl is the record: one JSON object a line, `step` (updates made) and `time` (seconds since 1970) in each. Lines are flushed as
they are written, so that a killed run keeps them; those of a run in a bucket get there with each checkpoint. The TensorBoard folder is a
view of it: when a run goes on from a checkpoint, lines past that step are dropped, since they will be written again, and the view is
rebuilt from those that stay.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tensorboard.summary import Writer

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import Mirror, is_full_disk, located, naming_full_disk, write_whole
from plamo2_jax.train.task import PROCESSED, means

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_MOST_BYTES = 16 << 20
"""Longest line that is read. One of samples.jsonl holds a text with a log-probability per token."""


class MetricsLog:
    """Write the log of one run. A context manager.

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
        kept, damaged = scan_metrics(folder / METRICS) if step else ([], [])
        if damaged:
            print(f"left out of the log: {len(damaged)} damaged line(s), the first: {damaged[0]}", file=sys.stderr)
        kept = [line for line in kept if line["step"] <= step]
        self.seconds = sum(line.get("step_seconds", 0.0) for line in kept)
        """Time spent on the steps in the log."""
        write_whole(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._mirror.clear(TENSORBOARD)
        self._tensorboard = Writer(str(folder / TENSORBOARD))
        for line in kept:
            self._show(line)

    def __enter__(self) -> MetricsLog:
        # TensorBoard writes in a thread. On a full disk `write` or `flush` fails too: one sentence is enough.
        self._excepthook, threading.excepthook = threading.excepthook, _without_full_disk(threading.excepthook)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with naming_full_disk(self._folder):
                try:
                    self._tensorboard.close()
                finally:
                    self._file.close()
                self._mirror.close()
        finally:
            threading.excepthook = self._excepthook

    def drop_after(self, step: int) -> None:
        """Drop the lines of later steps, which were rolled back."""
        self._file.close()
        self._tensorboard.close()
        self._open(step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line. `flush` writes it out."""
        # JSON has no number for what is not finite.
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        line = {"step": step, "time": time.time(), **finite}
        self.seconds += figures.get("step_seconds", 0.0)
        with naming_full_disk(self._folder):
            self._file.write(json.dumps(line) + "\n")
            self._show(line)

    def flush(self) -> None:
        """Hand everything written so far to the operating system, so that it survives the process."""
        with naming_full_disk(self._folder):
            self._file.flush()
            self._tensorboard.flush()

    def upload(self) -> None:
        """Copy what is written so far to the bucket of the run, if it is in one."""
        self.flush()
        self._mirror.upload()

    def _show(self, line: Mapping[str, float]) -> None:
        for name, value in line.items():
            if name not in ("step", "time"):
                self._tensorboard.add_scalar(name, value, line["step"], wall_time=line.get("time"))


def _without_full_disk(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `threading.excepthook` so that it does not report a full disk."""
    return lambda given: None if given.exc_value is not None and is_full_disk(given.exc_value) else hook(given)


class NoLog:
    """The log of a process that writes none."""

    seconds = 0.0

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Do nothing."""

    def drop_after(self, step: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def upload(self) -> None:
        """Do nothing."""


def read_lines(
    path: str | os.PathLike[str], check: Callable[[Mapping[str, Any]], str | None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a file of JSON lines, one object with an integer "step" each. Bad lines are left out, and a last line that a kill cut off.

    Args:
        path: the file; one that does not exist has no lines.
        check: returns what is wrong with an object, or None.

    Returns:
        The good lines, and for each bad one a sentence that names file and line.
    """
    path = located(path)
    if optional_file(path.parent, path.name) is None:
        return [], []
    good, bad = [], []
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(_MOST_BYTES)
            if not line.endswith(b"\n"):
                if len(line) == _MOST_BYTES:
                    bad.append(f"{path}, line {number}, is longer than {_MOST_BYTES:,} bytes")
                # What follows the last newline is empty, or a line that was never finished.
                return good, bad
            try:
                value = parse_json(line, f"{path}, line {number},")
                wrong = check(value) if isinstance(value, dict) else "must be a JSON object"
            except ValueError as error:
                bad.append(str(error))
                continue
            if wrong is None:
                good.append(value)
            else:
                bad.append(f"{path}, line {number}, {wrong}")


def metrics_problem(line: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a line of metrics.jsonl, or None."""
    if not is_step(line.get("step")):
        return 'must have an integer "step" of 0 or more'
    for name, value in line.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must have numbers alone; {name[:40]!r} is {type(value).__name__}"
        if abs(value) > sys.float_info.max:
            return f"{name[:40]!r} is too large"
    return None


def is_step(value: Any) -> bool:
    """Return whether a JSON value can be the number of a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def scan_metrics(path: str | os.PathLike[str]) -> tuple[list[dict[str, float]], list[str]]:
    """Read the good lines of a metrics.jsonl, and return a sentence about each bad one."""
    return read_lines(path, metrics_problem)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Read the lines of a metrics.jsonl; none if there is no file. A last line that a kill cut off is ignored.

    Raises:
        ValueError: a line is no object of numbers with a step; the message names the file and the line.
    """
    good, bad = scan_metrics(path)
    if bad:
        raise PlamoError(bad[0])
    return good


def step_figures(sums: Mapping[str, float], denominators: Mapping[str, str]) -> dict[str, float]:
    """Return what goes into the log for one step, from the sums that the train step returns.

    Sums over trained tokens become bits per byte, nats per token and accuracy; any other sum is divided by what it is over, which is the
    loss's weight unless `denominators` says otherwise (see `train.task.means`). `tokens` are those that the model read, prompts included.
    """
    figures = {name: sums[name] for name in ("loss", "grad_norm", "learning_rate", "skipped") if name in sums}
    if sums.get("bytes"):
        figures["bits_per_byte"] = sums["nats"] / math.log(2) / sums["bytes"]
    if sums.get("tokens") and "nats" in sums:
        figures["nats_per_token"] = sums["nats"] / sums["tokens"]
        figures["accuracy"] = sums["correct"] / sums["tokens"]
    if PROCESSED in sums:
        figures["tokens"] = sums[PROCESSED]
    others = sums.keys() - figures.keys() - {"nats", "tokens", "bytes", "correct", PROCESSED}
    return figures | means({name: sums[name] for name in others}, denominators)
