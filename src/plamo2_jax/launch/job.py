"""The run to launch, and the command line that starts one process of it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from plamo2_jax.storage import is_remote

# How `plamo2 pretrain` is told of its other processes: the one place where these flags are spelled.
AUTO = ("--distributed.coordinator", "auto")
"""jax.distributed finds coordinator, count and number by itself: on TPU slices, in GKE and under SLURM."""


def process_flags(coordinator: str, number: int, count: int) -> tuple[str, ...]:
    """Flags of process `number` of `count`, where nothing else tells it."""
    return (
        *("--distributed.coordinator", coordinator),
        *("--distributed.process-id", str(number)),
        *("--distributed.process-count", str(count)),
    )


# Exit statuses of `plamo2 pretrain`, by which the launchers decide whether to start it again.
REFUSED = 2
"""The configuration or a file is wrong: it will be wrong the next time too."""
TERMINATED = 128 + 15
"""It was asked to stop, saved a checkpoint and did: the same command goes on from there."""


@dataclasses.dataclass(frozen=True)
class Input:
    """A file or folder that the run reads."""

    name: str
    """The field of the config that names it."""
    path: str
    """Where it is, as resolved."""
    in_bucket: bool = False
    """Whether pretrain reads it from a bucket too."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One pretraining run: its config file, and what the launchers need to know of it."""

    config: Path
    """The config file."""
    name: str
    """The run's name, as resolved."""
    output: str
    """Folder of runs, as resolved."""
    overrides: tuple[str, ...] = ()
    """Further arguments of `plamo2 pretrain`, after the config file."""
    inputs: tuple[Input, ...] = ()
    """What the run reads."""

    def command(self, program: tuple[str, ...], *flags: str, config: Path | None = None) -> list[str]:
        """Arguments that start one process; `config` is the config file as the process finds it."""
        return [*program, "pretrain", str(config or self.config), *self.overrides, *flags]

    @property
    def output_is_local(self) -> bool:
        """Whether the output is a path, rather than a bucket."""
        return not is_remote(self.output)


def wrapped(arguments: list[str]) -> str:
    """Arguments as one shell command, an option a line."""
    lines = [""]
    for argument in arguments:
        if argument.startswith("--") and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {shlex.quote(argument)}".lstrip()
    return " \\\n  ".join(lines)
