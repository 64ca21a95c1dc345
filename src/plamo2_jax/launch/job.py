"""The run to launch, and the command line of one of its processes."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from plamo2_jax.storage import is_remote

# Flags of `plamo2 pretrain` for jobs of several processes.
AUTO = ("--distributed.coordinator", "auto")
"""On TPU slices, in GKE and under SLURM, jax.distributed finds the coordinator, the number of processes and the process index by itself."""


def process_flags(coordinator: str, number: int, count: int) -> tuple[str, ...]:
    """Return the flags of process `number` of `count`, for environments that jax.distributed does not recognise."""
    return (
        *("--distributed.coordinator", coordinator),
        *("--distributed.process-id", str(number)),
        *("--distributed.process-count", str(count)),
    )


# Exit statuses of `plamo2 pretrain`. The launchers use them to decide whether to restart it.
REFUSED = 2
"""The configuration or a file is wrong. A restart would fail again."""
TERMINATED = 128 + 15
"""The run was stopped by SIGTERM and saved a checkpoint. The same command resumes it."""


@dataclasses.dataclass(frozen=True)
class Input:
    """A file or folder that the run reads."""

    name: str
    """Field of the config that names the path."""
    path: str
    """Resolved path."""
    in_bucket: bool = False
    """Whether pretrain can read it from a bucket."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A pretraining run to launch."""

    config: Path
    """Config file."""
    name: str
    """Resolved name of the run."""
    output: str
    """Resolved folder of runs."""
    overrides: tuple[str, ...] = ()
    """Further arguments of `plamo2 pretrain`, after the config file."""
    inputs: tuple[Input, ...] = ()
    """Files and folders that the run reads."""

    def command(self, program: tuple[str, ...], *flags: str, config: Path | None = None) -> list[str]:
        """Return the command line of one process. `config` is the path of the config file for that process."""
        return [*program, "pretrain", str(config or self.config), *self.overrides, *flags]

    @property
    def output_is_local(self) -> bool:
        """Whether the output is not in a bucket."""
        return not is_remote(self.output)


def wrapped(arguments: list[str]) -> str:
    """Return arguments as one shell command with one option per line."""
    lines = [""]
    for argument in arguments:
        if argument.startswith("--") and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {shlex.quote(argument)}".lstrip()
    return " \\\n  ".join(lines)
