"""The status of a training run, from its folder: progress, speed, time left, newest samples."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from plamo2_jax import checkpoint
from plamo2_jax.json_input import parse_json
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import address, files_below, is_remote, located
from plamo2_jax.train.watchdog import STALLS
from plamo2_jax.watch.log_tail import Lines, LogTail

SAMPLES = "samples.jsonl"
_MOST_SAMPLES, _SAMPLE_BYTES, _SAMPLE_CHARS = 3, 4 << 20, 400
_RECENT = 200
"""Number of updates from which the speed is computed."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A generated text."""

    step: int
    prompt: str
    text: str


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """The status of a run at one moment."""

    name: str
    folder: str
    kind: str
    """Kind of the task, such as pretrain."""
    step: int
    """Number of updates so far."""
    steps: int | None
    """Number of updates of the complete run; None if it is not known."""
    newest: Mapping[str, float]
    """The newest value of each metric."""
    losses: Sequence[float]
    """Losses of the newest updates, oldest first."""
    heldout: Mapping[str, tuple[float, float | None]]
    """Held-out metric → its newest value and the one before."""
    seconds_per_step: float | None
    """Wall time per update, with evaluations and checkpoints."""
    write_seconds: float
    """Usual time between two writes to the log, in seconds."""
    age: float | None
    """Seconds since the newest line of the log; None: there is no line."""
    checkpoints: Sequence[int]
    checkpoint_bytes: int | None
    """Size of the newest checkpoint; None: there is none, or it is in a bucket."""
    free_bytes: int | None
    """Free space on the disk of the folder; None: it is in a bucket."""
    stalled_at: float | None
    """Time of the newest entry in stalls.txt, in seconds since 1970."""
    skipped: Sequence[int]
    """Steps among the newest whose update was skipped because it was not finite."""
    samples: Sequence[Sample]

    @property
    def complete(self) -> bool:
        """Whether all updates are done and the checkpoint of the last one is written."""
        return self.steps is not None and self.step >= self.steps and self.steps in self.checkpoints

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the last update, in seconds."""
        if self.steps is None or self.seconds_per_step is None:
            return None
        return max(0, self.steps - self.step) * self.seconds_per_step


class RunWatch:
    """Read the status of a run again and again.

    Args:
        folder: Run folder, on this machine or in a bucket.

    Raises:
        PlamoError: The folder is in a bucket, and the package for it is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = located(folder)
        self._remote = is_remote(folder)
        self._tail = LogTail(folder)
        self._sized: tuple[int, int] | None = None

    def read(self, now: float | None = None) -> RunStatus:
        """Return the status. `now` is the time in seconds since 1970; None: the clock's.

        Raises:
            PlamoError: config.json is damaged.
        """
        now = time.time() if now is None else now
        config = checkpoint.read_config(self.folder) if self.exists() else {}
        lines = self._tail.read()
        updates = [line for line in lines if "loss" in line or line.get("skipped")]
        newest: dict[str, float] = {}
        for line in lines:
            newest |= line
        found = self._checkpoints()
        seconds, write_seconds = _pace(updates)
        steps, task = config.get("steps"), config.get("task")
        name = config.get("name")
        return RunStatus(
            name=name if isinstance(name, str) else self.folder.name,
            folder=address(self.folder),
            kind=str(task.get("kind", "")) if isinstance(task, Mapping) else "",
            step=int(updates[-1]["step"]) if updates else (found[-1] if found else 0),
            steps=steps if isinstance(steps, int) else None,
            newest=newest,
            losses=[line["loss"] for line in updates if "loss" in line],
            heldout=_heldout(lines),
            seconds_per_step=seconds,
            write_seconds=write_seconds,
            age=max(0.0, now - lines[-1]["time"]) if lines and "time" in lines[-1] else None,
            checkpoints=found,
            checkpoint_bytes=self._size(found),
            free_bytes=None if self._remote else shutil.disk_usage(self.folder).free,
            stalled_at=self._stalled_at(),
            skipped=[int(line["step"]) for line in updates[-_RECENT:] if line.get("skipped")],
            samples=self._samples(),
        )

    def exists(self) -> bool:
        """Return whether the folder has a config.json."""
        return optional_file(self.folder, checkpoint.CONFIG) is not None

    def _checkpoints(self) -> list[int]:
        """Return the steps of the checkpoints. `checkpoint.steps` could start JAX's backend, which the run may hold alone."""
        root = self.folder / checkpoint.CHECKPOINTS
        try:
            return sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []

    def _size(self, found: Sequence[int]) -> int | None:
        """Return the size of the newest checkpoint in bytes."""
        if self._remote or not found:
            return None
        if self._sized is None or self._sized[0] != found[-1]:
            folder = self.folder / checkpoint.CHECKPOINTS / str(found[-1])
            try:
                self._sized = (found[-1], sum(path.stat().st_size for path in files_below(folder)))
            except OSError:  # It is being replaced by a newer one.
                return None
        return self._sized[1]

    def _stalled_at(self) -> float | None:
        if self._remote or optional_file(self.folder, STALLS) is None:
            return None
        return (self.folder / STALLS).stat().st_mtime

    def _samples(self) -> list[Sample]:
        """Return the samples of the newest step. Damaged lines are skipped."""
        path = optional_file(self.folder, SAMPLES)
        if path is None:
            return []
        found = []
        for line in _last_bytes(path, self._remote).split(b"\n"):
            try:
                value = parse_json(line, SAMPLES) if line.strip() else None
            except ValueError:
                continue
            if isinstance(value, dict) and isinstance(value.get("step"), int):
                texts = [str(value.get(name, ""))[:_SAMPLE_CHARS] for name in ("prompt", "text")]
                found.append(Sample(value["step"], *texts))
        newest = max((sample.step for sample in found), default=0)
        return [sample for sample in found if sample.step == newest][:_MOST_SAMPLES]


def _last_bytes(path: Path, remote: bool) -> bytes:
    if remote:
        return path.read_bytes()[-_SAMPLE_BYTES:]
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _SAMPLE_BYTES))
        return file.read(_SAMPLE_BYTES)


def _pace(updates: Lines) -> tuple[float | None, float]:
    """Return the wall time per update, and the usual time between two writes to the log, in seconds.

    Each write to the log has a step or several. A pause of more than ten usual intervals and a minute, such as a restart, is excluded.
    """
    recent = [line for line in updates[-_RECENT:] if "time" in line]
    # Lines of one write have nearly the same time.
    writes: list[tuple[float, float]] = []
    for line in recent:
        if writes and line["time"] - writes[-1][0] < 0.02:
            writes[-1] = (line["time"], line["step"])
        else:
            writes.append((line["time"], line["step"]))
    gaps = [
        (after[0] - before[0], after[1] - before[1])
        for before, after in itertools.pairwise(writes)
        if after[0] > before[0] and after[1] > before[1]
    ]
    if not gaps:
        stepped = [line["step_seconds"] for line in recent if "step_seconds" in line]
        return (statistics.median(stepped) if stepped else None), 0.0
    usual = statistics.median(seconds for seconds, _ in gaps)
    counted = [(seconds, steps) for seconds, steps in gaps if seconds <= 10 * usual + 60]
    return math.fsum(seconds for seconds, _ in counted) / sum(steps for _, steps in counted), usual


def _heldout(lines: Lines) -> dict[str, tuple[float, float | None]]:
    """Return the newest value of each held-out metric and of each task, and the value before it; the bits per byte come first."""
    found: dict[str, tuple[float, float | None]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith(("heldout/", "tasks/")):
                found[name] = (value, found[name][0] if name in found else None)
    return dict(sorted(found.items(), key=lambda item: not item[0].endswith("/bits_per_byte")))


def as_json(status: RunStatus, alerts: Sequence[str]) -> str:
    """Return a status as one line of JSON. Times are in seconds, sizes in bytes."""
    figures = {name: value for name, value in status.newest.items() if name not in ("step", "time")}
    return json.dumps(
        {
            "run": status.name,
            "folder": status.folder,
            "step": status.step,
            "steps": status.steps,
            "complete": status.complete,
            "seconds_left": status.seconds_left,
            "age_seconds": status.age,
            "metrics": figures,
            "checkpoints": list(status.checkpoints),
            "free_bytes": status.free_bytes,
            "alerts": list(alerts),
        },
        ensure_ascii=False,
    )
