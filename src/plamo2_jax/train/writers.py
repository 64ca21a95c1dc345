"""Writers that copy the lines of metrics.jsonl to other programs: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from plamo2_jax.errors import PlamoError

WriterName = Literal["tensorboard", "wandb"]
TENSORBOARD, WANDB = "tensorboard", "wandb"
"""Folders in the run folder."""
RUN_ID = "run_id.txt"
"""File in wandb/ with the id of the run of Weights & Biases."""
Line = Mapping[str, float]


class MetricWriter(Protocol):
    """Takes the lines of metrics.jsonl."""

    def start(self, lines: Sequence[Line]) -> None:
        """Begin with the lines that the log has already; called again after a rollback."""

    def write(self, line: Line) -> None:
        """Take a new line."""

    def flush(self) -> None:
        """Write all lines to the operating system."""

    def close(self) -> None:
        """Write the rest and end."""


def require_writers(names: Sequence[WriterName]) -> None:
    """Raise PlamoError if a name is unknown or the package of a writer is not installed."""
    if set(names) - set(get_args(WriterName)):
        raise PlamoError(f"metrics={names!r} is not allowed: it must be a list of {' and '.join(get_args(WriterName))}")
    if WANDB in names and importlib.util.find_spec("wandb") is None:
        raise PlamoError(
            "logging metrics to wandb needs the package wandb: install this project with the extra wandb, as in pip install '.[wandb]'"
        )


def open_writers(names: Sequence[WriterName], folder: Path, about: Mapping[str, Any]) -> list[MetricWriter]:
    """Return the writers of a run.

    Args:
        names: writers, in any order.
        folder: local folder to write into.
        about: name and config of the run, for Weights & Biases.

    Raises:
        PlamoError: the package of a writer is not installed.
    """
    require_writers(names)
    kinds: dict[str, Any] = {
        TENSORBOARD: lambda: TensorBoardWriter(folder / TENSORBOARD),
        WANDB: lambda: WandbWriter(folder, about),
    }
    return [kinds[name]() for name in dict.fromkeys(names)]


class TensorBoardWriter:
    """Write the event files of TensorBoard. They are rebuilt at each start, because steps may be repeated.

    Args:
        folder: folder of the event files, which the caller has emptied.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: Any = None

    def start(self, lines: Sequence[Line]) -> None:
        """Begin a new file."""
        from tensorboard.summary import Writer

        self.close()
        self._writer = Writer(str(self._folder))
        for line in lines:
            self.write(line)

    def write(self, line: Line) -> None:
        """Add the metrics of a line."""
        for name, value in line.items():
            if name not in ("step", "time"):
                self._writer.add_scalar(name, value, line["step"], wall_time=line.get("time"))

    def flush(self) -> None:
        """Write all lines to the operating system."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class WandbWriter:
    """Send metrics to Weights & Biases, or to a folder if WANDB_MODE=offline.

    The environment variables of wandb apply: WANDB_PROJECT (default: plamo2-jax), WANDB_MODE, WANDB_API_KEY. A resumed run continues
    the same run of Weights & Biases. It cannot delete lines: steps that are repeated appear twice, with the metric `step` on the axis.

    Args:
        folder: the run folder. The files of wandb go to wandb/ in it.
        about: name and config of the run.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        import wandb

        (folder / WANDB).mkdir(parents=True, exist_ok=True)
        identity = folder / WANDB / RUN_ID
        self._is_new = not identity.is_file()
        if self._is_new:
            identity.write_text(uuid.uuid4().hex[:16], encoding="ascii")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "plamo2-jax"),
            name=about.get("name"),
            config=dict(about.get("config", {})),
            id=identity.read_text(encoding="ascii").strip(),
            resume="allow",
            dir=str(folder),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def start(self, lines: Sequence[Line]) -> None:
        """Send the lines of the log, unless an earlier start of the run has sent them."""
        if self._is_new:
            self._is_new = False
            for line in lines:
                self.write(line)

    def write(self, line: Line) -> None:
        """Send a line."""
        self._run.log(dict(line))

    def flush(self) -> None:
        """Do nothing: a process of wandb stores each line as it comes."""

    def close(self) -> None:
        """Wait until all lines are sent or stored."""
        self._run.finish()
