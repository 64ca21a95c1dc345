"""The log of a run: metrics.jsonl, and the same metrics for TensorBoard and Weights & Biases.

metrics.jsonl has one JSON object per line with `step` (number of updates), `time` (seconds since 1970) and metrics. The lines of a killed
run are kept. For a run in a bucket, lines are uploaded with each checkpoint. The TensorBoard files are derived from metrics.jsonl. When a
run resumes from a checkpoint, lines of later steps are dropped, because these steps are repeated, and the TensorBoard files are rebuilt.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import Mirror, is_full_disk, located, naming_full_disk, write_whole
from plamo2_jax.train.task import PROCESSED, means
from plamo2_jax.train.writers import RUN_ID, TENSORBOARD, WANDB, WriterName, open_writers

METRICS = "metrics.jsonl"
_MOST_BYTES = 16 << 20
"""Maximum length of a line. A line of samples.jsonl holds a text with a log-probability per token."""


class MetricsLog:
    """Write the log of one run. A context manager.

    Args:
        folder: Run folder.
        step: Step from which the run starts. Lines of later steps are dropped.
        writers: Writers that get the same metrics.
        about: Name and config of the run, for the writers.

    Raises:
        PlamoError: The package of a writer is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        step: int = 0,
        writers: Sequence[WriterName] = ("tensorboard",),
        about: Mapping[str, Any] | None = None,
    ):
        self._mirror = Mirror(folder)
        self._folder = self._mirror.folder
        self._mirror.download(METRICS)
        if WANDB in writers:  # A run in a bucket keeps the id of its run of Weights & Biases there.
            (self._folder / WANDB).mkdir(parents=True, exist_ok=True)
            self._mirror.download(f"{WANDB}/{RUN_ID}")
        self._writers = open_writers(writers, self._folder, about or {})
        self._open(step)

    def _open(self, step: int) -> None:
        folder = self._folder
        lines, damaged = scan_metrics(folder / METRICS) if step else ([], [])
        if damaged:
            print(f"{len(damaged)} damaged line(s) of the log are ignored; the first: {damaged[0]}", file=sys.stderr)
        kept = [line for line in lines if line["step"] <= step]
        self.seconds = sum(line.get("step_seconds", 0.0) for line in kept)
        """Time spent on the steps in the log, in seconds."""
        dropped = [line["step_seconds"] for line in lines if line["step"] > step and "step_seconds" in line]
        self.dropped_steps, self.dropped_seconds = len(dropped), sum(dropped)
        """Steps after `step` in the log that was opened, which are repeated, and the time spent on them, in seconds."""
        self.first_names = frozenset(name for line in kept if line["step"] == step for name in line)
        """Names in the lines of the step from which the run starts."""
        write_whole(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._mirror.clear(TENSORBOARD)
        for writer in self._writers:
            writer.start(kept)

    def __enter__(self) -> MetricsLog:
        # TensorBoard writes in a thread. If the disk is full, `write` or `flush` fails too, and a single message is enough.
        self._excepthook, threading.excepthook = threading.excepthook, _without_full_disk(threading.excepthook)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with naming_full_disk(self._folder):
                try:
                    for writer in self._writers:
                        writer.close()
                finally:
                    self._file.close()
                self._mirror.close()
        finally:
            threading.excepthook = self._excepthook

    def drop_after(self, step: int) -> None:
        """Drop the lines of later steps, after a rollback."""
        self._file.close()
        self._open(step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line. `flush` writes it to the file."""
        # JSON has no NaN and no infinity.
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        line = {"step": step, "time": time.time(), **finite}
        self.seconds += figures.get("step_seconds", 0.0)
        with naming_full_disk(self._folder):
            self._file.write(json.dumps(line) + "\n")
            for writer in self._writers:
                writer.write(line)

    def flush(self) -> None:
        """Write all lines to the operating system, so that they survive the process."""
        with naming_full_disk(self._folder):
            self._file.flush()
            for writer in self._writers:
                writer.flush()

    def upload(self) -> None:
        """Upload all lines if the run is in a bucket."""
        self.flush()
        self._mirror.upload()


def _without_full_disk(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `threading.excepthook` so that it does not report a full disk."""
    return lambda given: None if given.exc_value is not None and is_full_disk(given.exc_value) else hook(given)


class NoLog(contextlib.AbstractContextManager):
    """The log of a process that writes no log: its methods do nothing."""

    seconds = dropped_seconds = 0.0
    dropped_steps = 0
    first_names: frozenset[str] = frozenset()

    def _ignore(self, *_: object) -> None:
        pass

    write = drop_after = flush = upload = __exit__ = _ignore


def read_lines(
    path: str | os.PathLike[str], check: Callable[[Mapping[str, Any]], str | None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a file of JSON lines, each an object with an integer "step". Bad lines and an unfinished last line are skipped.

    Args:
        path: File to read. A missing file has no lines.
        check: Returns a description of the problem of an object, or None.

    Returns:
        The good lines, and a message for each bad line.
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
                # The text after the last newline is empty or an unfinished line.
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
    """Return a description of the problem of a line of metrics.jsonl, or None."""
    if not is_step(line.get("step")):
        return 'must have an integer "step" of 0 or more'
    for name, value in line.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must contain only numbers, but {name[:40]!r} is {type(value).__name__}"
        if abs(value) > sys.float_info.max:
            return f"{name[:40]!r} is too large"
    return None


def is_step(value: Any) -> bool:
    """Return whether a JSON value is a valid step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def scan_metrics(path: str | os.PathLike[str]) -> tuple[list[dict[str, float]], list[str]]:
    """Return the good lines of a metrics.jsonl, and a message for each bad line."""
    return read_lines(path, metrics_problem)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Read the lines of a metrics.jsonl; none if the file is missing. An unfinished last line is skipped.

    Raises:
        PlamoError: A line is not an object of numbers with a step.
    """
    good, bad = scan_metrics(path)
    if bad:
        raise PlamoError(bad[0])
    return good


def step_figures(sums: Mapping[str, float], denominators: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics of one step from the sums of the train step.

    Sums over trained tokens become bits per byte, nats per token and accuracy. Any other sum is divided by its denominator (see
    `train.task.means`). `tokens` is the number of tokens that the model read, including prompts.
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
