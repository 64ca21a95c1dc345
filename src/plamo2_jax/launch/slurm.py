"""Train on a SLURM cluster: an sbatch script that starts the run on every node with srun, and requeues itself after a stop."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch import sbatch
from plamo2_jax.launch.job import AUTO, TERMINATED, Job, wrapped
from plamo2_jax.launch.setup import setup_lines
from plamo2_jax.validation import require_at_least

CPUS_PER_GPU = 8
"""Default number of CPU cores per GPU of a process. GPU nodes have at least this many per GPU. The default of many clusters is one core per
task, on which reading data is too slow for the GPUs."""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Train on a SLURM cluster, from a folder that all nodes share. Needs sbatch."""

    nodes: int = 1
    """Number of nodes."""
    gpus_per_node: int = 0
    """GPUs of each node; 0 for a job on CPUs."""
    processes_per_node: int | None = None
    """Number of processes per node. Default: one per GPU, or one without GPUs. The processes share the GPUs of the node in equal parts."""
    cpus_per_process: int | None = None
    """Number of CPU cores of each process. Default: 8 for each GPU of the process, or 8 without GPUs. 0: the cluster's default."""
    time: str = "24:00:00"
    """Time limit of the job, after which it is queued again, as minutes, hours:minutes:seconds or days-hours:minutes:seconds."""
    grace: int = 120
    """Time before the time limit at which the run gets SIGTERM, saves a checkpoint and stops, in seconds."""
    partition: str | None = None
    """Partition. Default: the cluster's default."""
    account: str | None = None
    """Account to charge. Default: the user's default."""
    setup: str = ""
    """Shell command before the run, such as "module load cuda"; join several with &&. If it fails, the job ends."""
    sbatch_flag: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Further option of sbatch, as in --sbatch-flag=--qos=high; may be given several times."""
    job_name: str | None = None
    """Name of the job. Default: the run's name."""
    program: str = ".venv/bin/plamo2"
    """The plamo2 command on the nodes: a path relative to the folder in which sbatch is called."""

    def check(self) -> None:
        """Check that values are in range; raise PlamoError otherwise."""
        require_at_least(1, nodes=self.nodes, grace=self.grace, processes_per_node=self.processes_per_node)
        require_at_least(0, gpus_per_node=self.gpus_per_node, cpus_per_process=self.cpus_per_process)
        if self.gpus_per_node and self.gpus_per_node % self.processes:
            raise PlamoError(
                f"--processes-per-node {self.processes} is not allowed: it must be a divisor of --gpus-per-node {self.gpus_per_node}"
            )
        sbatch.check(self)

    @property
    def processes(self) -> int:
        """Number of processes per node."""
        return self.processes_per_node or max(self.gpus_per_node, 1)

    @property
    def cpus(self) -> int:
        """Number of CPU cores per process; 0 for the cluster's default."""
        if self.cpus_per_process is not None:
            return self.cpus_per_process
        return CPUS_PER_GPU * max(1, self.gpus_per_node // self.processes)


def script(job: Job, options: Slurm) -> str:
    """Return the sbatch script.

    Raises:
        PlamoError: An option is not allowed, or the run's name has no allowed character.
    """
    options.check()
    own = [
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={options.processes}",
        *([f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []),
        *([f"--cpus-per-task={options.cpus}"] if options.cpus else []),
    ]
    return _SCRIPT.format(
        directives=sbatch.directives(options, job.name, own, log="%j"),
        setup=f"{setup}\n" if (setup := setup_lines(options.setup)) else "",
        devices=_devices(options),
        cpus=f"--cpus-per-task={options.cpus} " if options.cpus else "",
        command=wrapped(job.command((options.program,), *AUTO)),
        terminated=TERMINATED,
    )


def _devices(options: Slurm) -> str:
    """Return the lines that give a process several GPUs. By default, JAX under SLURM gives process i GPU i only."""
    each = options.gpus_per_node // options.processes
    if each < 2:
        return ""
    if options.processes == 1:
        return f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(each)))}\n\n"
    raise PlamoError(
        f"--processes-per-node {options.processes} is not allowed: it must be 1 or --gpus-per-node {options.gpus_per_node}"
    )


# No strict options (set -u, pipefail): they would also apply to shell functions, which `srun` and the user's setup may define.
_SCRIPT = """#!/usr/bin/env bash
{directives}

{setup}{devices}# When one process ends, srun does not kill the others: they may still be saving a checkpoint.
srun {cpus}--kill-on-bad-exit=0 {command}
status=$?

# {terminated}: stopped by SIGTERM, with a checkpoint, at the time limit or for another job. (After scancel, the job must not be requeued.)
if ((status == {terminated})) && [[ $(squeue --noheader --format=%T --job "$SLURM_JOB_ID") == RUNNING ]]; then
  echo "launch: stopped with a checkpoint; queued again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def launch(job: Job, options: Slurm) -> int:
    """Submit the script with sbatch, and return the exit status.

    Raises:
        PlamoError: sbatch is missing, or a value is not allowed.
    """
    return sbatch.submit(script(job, options))
