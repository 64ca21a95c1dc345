"""Run the workers of `plamo2 synth` as an array of SLURM jobs, in a folder that all nodes share."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Annotated

import tyro

from plamo2_jax.launch import sbatch
from plamo2_jax.launch.setup import setup_lines
from plamo2_jax.launch.synth_job import FAILING, TERMINATED, SynthJob
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True)
class SynthSlurm:
    """Make synthetic data with the workers of a SLURM array. Needs sbatch and a folder that all nodes share."""

    workers: int = 4
    """Number of workers. Worker 0 also runs the stages after generation."""
    at_once: int | None = None
    """Maximum number of workers that run at the same time. Default: no limit."""
    cpus_per_worker: int = 4
    """CPU cores of each worker."""
    gpus_per_worker: int = 0
    """Number of GPUs of each worker, for a generator that runs in the worker; 0 if a server generates."""
    time: str = "24:00:00"
    """Time limit of a worker, after which it is queued again, as minutes, hours:minutes:seconds or days-hours:minutes:seconds."""
    grace: int = 180
    """Time before the time limit at which a worker gets SIGTERM and finishes its requests, in seconds. It must be larger than
    generator.timeout."""
    restarts: int = 20
    """Maximum number of times that a worker is queued again."""
    partition: str | None = None
    """Partition. Default: the cluster's default."""
    account: str | None = None
    """Account to charge. Default: the user's default."""
    setup: str = ""
    """Shell command before the worker; join several with &&. If it fails, the worker ends."""
    sbatch_flag: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Further option of sbatch, as in --sbatch-flag=--qos=high; may be given several times."""
    job_name: str | None = None
    """Name of the job. Default: the name of the run folder."""
    program: str = ".venv/bin/plamo2"
    """The plamo2 command on the nodes: a path relative to the folder in which sbatch is called."""

    def check(self) -> None:
        """Check that values are in range; raise PlamoError otherwise."""
        require_at_least(
            1, workers=self.workers, at_once=self.at_once, cpus_per_worker=self.cpus_per_worker, grace=self.grace
        )
        require_at_least(0, gpus_per_worker=self.gpus_per_worker, restarts=self.restarts)
        sbatch.check(self)


def script(job: SynthJob, options: SynthSlurm) -> str:
    """Return the sbatch script.

    Raises:
        PlamoError: An option is not allowed.
    """
    options.check()
    own = [
        f"--array=0-{options.workers - 1}{f'%{options.at_once}' if options.at_once else ''}",
        "--ntasks=1",
        f"--cpus-per-task={options.cpus_per_worker}",
        *([f"--gpus={options.gpus_per_worker}"] if options.gpus_per_worker else []),
    ]
    command = job.command(options.program, "INDEX")
    return _SCRIPT.format(
        directives=sbatch.directives(options, job.name, own, log="%A-%a"),
        setup=f"{setup}\n" if (setup := setup_lines(options.setup)) else "",
        cpus=options.cpus_per_worker,
        command=f'{shlex.join(command[:-1])} "$SLURM_ARRAY_TASK_ID"',
        terminated=TERMINATED,
        failing=FAILING,
        restarts=options.restarts,
    )


_SCRIPT = """#!/usr/bin/env bash
{directives}

{setup}srun --cpus-per-task={cpus} {command}
status=$?

# {terminated}: stopped by SIGTERM, with all paid responses stored. {failing}: the server failed one request after another.
# (After scancel, the worker must not be requeued.)
if ((status == {terminated} || status == {failing})) && ((${{SLURM_RESTART_COUNT:-0}} < {restarts})) &&
  [[ $(squeue --noheader --format=%T --job "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID") == RUNNING ]]; then
  ((status == {terminated})) || sleep "${{LAUNCH_PAUSE:-60}}"
  echo "launch: worker $SLURM_ARRAY_TASK_ID ended with status $status; queued again" >&2
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""


def launch(job: SynthJob, options: SynthSlurm) -> int:
    """Submit the script with sbatch, and return the exit status.

    Raises:
        PlamoError: sbatch is missing, or a value is not allowed.
    """
    return sbatch.submit(script(job, options))
