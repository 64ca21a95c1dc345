"""What the launchers for SLURM share: checks of options, the #SBATCH lines, and sbatch."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import Protocol

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch.checks import require_tool

_LONGEST_NAME = 200
"""Largest length of the job name, which is part of a file name of at most 255 bytes."""


class SbatchOptions(Protocol):
    """Options of a job, of training or of synthetic data; see `slurm.Slurm` and `synth_slurm.SynthSlurm`."""

    time: str
    grace: int
    partition: str | None
    account: str | None
    sbatch_flag: tuple[str, ...]
    job_name: str | None


def check(options: SbatchOptions) -> None:
    """Check that values can be part of an #SBATCH line; raise PlamoError otherwise."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", options.time):
        raise PlamoError(f"--time {options.time} is not allowed: it must be a time such as 24:00:00 or 2-00:00:00")
    for field in ("partition", "account"):
        value = getattr(options, field)
        if value is not None and not re.fullmatch(r"[\w.,-]+", value):
            raise PlamoError(f"--{field} {value!r} is not allowed: it must be a name without spaces")
    for flag in options.sbatch_flag:
        if not flag.startswith("-") or "\n" in flag:
            raise PlamoError(f"--sbatch-flag {flag!r} is not allowed: it must be one option, such as --qos=high")


def directives(options: SbatchOptions, run: str, own: Sequence[str], log: str) -> str:
    """Return the #SBATCH lines of a job that is queued again after a stop.

    Args:
        run: Name of the run, for the name of the job.
        own: Options of sbatch that only this kind of job has.
        log: Replacement symbols of sbatch that tell the logs of jobs apart.

    Raises:
        PlamoError: The name of the job is not allowed.
    """
    name = _job_name(options.job_name, run)
    words = [
        f"--job-name={name}",
        *own,
        f"--time={options.time}",
        *([f"--partition={options.partition}"] if options.partition else []),
        *([f"--account={options.account}"] if options.account else []),
        f"--output={name}-{log}.log",
        "--open-mode=append",  # A requeued job appends to its log.
        f"--signal=TERM@{options.grace}",
        "--requeue",
        *map(shlex.quote, options.sbatch_flag),
    ]
    return "\n".join(f"#SBATCH {word}" for word in words)


def submit(script: str) -> int:
    """Submit a script with sbatch, and return the exit status.

    Raises:
        PlamoError: sbatch is missing.
    """
    require_tool("sbatch")
    return subprocess.run(["sbatch"], input=script, text=True).returncode


def _job_name(given: str | None, run: str) -> str:
    """Return the job name: the given name, or the run's name with hyphens instead of characters that are not allowed here.

    SLURM allows almost any name. But the name is also part of an #SBATCH line, where a space or quote ends a word, and of the name of the
    log file, where "%" starts a replacement and "/" a folder.

    Raises:
        PlamoError: The given name is not allowed, or the run's name has no allowed character.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", run).strip("-")[:_LONGEST_NAME] if given is None else given
    if len(name) > _LONGEST_NAME or not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", name):
        raise PlamoError(
            f"--job-name {name[:60]!r} is not allowed: it must have only letters, digits, '_', '.' and '-' "
            f"(not first), and at most {_LONGEST_NAME} characters"
        )
    return name
