"""Everything in a folder that can be watched: a run, the runs inside it, and the stages of a pipeline."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.model_files import optional_file
from plamo2_jax.pipeline.state import FOLDER, State
from plamo2_jax.storage import is_remote, located
from plamo2_jax.train.metrics import METRICS
from plamo2_jax.watch.status import RunStatus, RunWatch


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """A stage of a pipeline that has started."""

    name: str
    status: Literal["started", "finished", "failed"]
    seconds: float
    """Duration of its last run, or seconds since it started."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a folder holds at one moment."""

    folder: str
    run: RunStatus | None
    """The run with the newest line in its log."""
    others: Sequence[RunStatus]
    """The other runs, those with the newest lines first."""
    stages: Sequence[StageStatus]
    """The stages of the pipeline, in the order in which they started; empty if the folder has no pipeline."""

    @property
    def complete(self) -> bool:
        """Whether there is nothing to wait for: every run is complete, and every started stage has finished or failed."""
        runs = [] if self.run is None else [self.run, *self.others]
        return (
            bool(runs) and all(run.complete for run in runs) and all(stage.status != "started" for stage in self.stages)
        )


class FolderWatch:
    """Read a folder again and again.

    Args:
        folder: A run folder, the home of a pipeline, or a folder of runs; on this machine or in a bucket.

    Raises:
        PlamoError: The folder does not exist, or holds neither a run nor a pipeline.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = located(folder)
        self._given = os.fspath(folder)
        self._runs: dict[str, RunWatch] = {}
        if not self.folder.is_dir():
            raise PlamoError(
                f"{folder} is not a folder: give a run folder, the home of a pipeline, or a folder of runs"
            )
        if not self._find() and not self._has_pipeline:
            raise PlamoError(f"{folder} has no run and no pipeline: a run folder has a config.json and a {METRICS}")

    @property
    def _has_pipeline(self) -> bool:
        return not is_remote(self.folder) and (self.folder / FOLDER).is_dir()

    def read(self) -> Snapshot:
        """Return the present state.

        Raises:
            PlamoError: A file is damaged.
        """
        statuses = []
        for name, watch in self._find().items():
            try:
                statuses.append(watch.read())
            except FileNotFoundError:  # Removed since it was found.
                if Path(name) == self.folder:
                    raise
        statuses.sort(key=lambda status: float("inf") if status.age is None else status.age)
        newest, others = (statuses[0], statuses[1:]) if statuses else (None, [])
        return Snapshot(self._given, newest, others, self._stages())

    def _find(self) -> Mapping[str, RunWatch]:
        """Find the run in the folder and the runs in its subfolders. In a bucket, only the folder itself is a run."""
        self._runs = {name: watch for name, watch in self._runs.items() if watch.exists()}
        candidates = [self.folder]
        if not is_remote(self.folder):
            candidates += sorted(path for path in self.folder.iterdir() if _may_be_run(path))
        for path in candidates:
            if str(path) not in self._runs and optional_file(path, METRICS) is not None:
                watch = RunWatch(path)
                if watch.exists():
                    self._runs[str(path)] = watch
        return self._runs

    def _stages(self) -> list[StageStatus]:
        """Return the stages that have a record, those that started first in front."""
        if not self._has_pipeline:
            return []
        state, found = State(self.folder), []
        progress = state.read_progress()
        for path in (self.folder / FOLDER).glob("*.json"):
            record = state.read(path.stem)
            if record is None:
                continue
            written = path.stat().st_mtime
            if record.outputs is not None:
                found.append((written - record.seconds, StageStatus(path.stem, "finished", record.seconds)))
                continue
            last = progress.get(path.stem)
            failed = last is not None and last.status == "failed"
            seconds = last.seconds if failed else max(0.0, time.time() - written)
            found.append((written, StageStatus(path.stem, "failed" if failed else "started", seconds)))
        return [stage for _, stage in sorted(found, key=lambda pair: pair[0])]


def _may_be_run(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
