"""`plamo2 launch PLACE CONFIG.py`: run `plamo2 pretrain` on TPU slices, on a SLURM cluster, or as several processes here."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import tyro

from plamo2_jax.cli.arguments import parse, require_command
from plamo2_jax.cli.compile_cache import NO_CACHE
from plamo2_jax.launch import gcloud, local, slurm, xpk
from plamo2_jax.launch.job import Input, Job
from plamo2_jax.launch.slices import parse_slice

if TYPE_CHECKING:
    from plamo2_jax.train.config import RunConfig

_USAGE = """usage: plamo2 launch PLACE CONFIG.py [options] [--dry-run] [-- --field value ...]

Runs `plamo2 pretrain CONFIG.py` on other machines, or as several processes. Arguments after -- are passed to pretrain. --dry-run only
prints the script or manifest, which you can read, keep, or pipe into shellcheck, bash, kubectl or sbatch.

  gcloud    a TPU slice of your own: requests a queued resource, installs, trains, and restarts after a preemption
  xpk       TPU slices of a GKE cluster: a JobSet for kubectl, or a command for XPK
  slurm     a SLURM cluster: an sbatch script that requeues itself
  local     several processes on this machine

example: plamo2 launch slurm configs/demo.py --nodes 4 --gpus-per-node 8 --dry-run -- --output /shared/runs

plamo2 launch PLACE --help explains a place; docs/launch.md has an example of each. A restarted run resumes from its newest checkpoint. With
more than one machine, set --output to a bucket (gs://...) or to a folder on a shared file system."""


SUBCOMMANDS = {"gcloud": gcloud.Gcloud, "xpk": xpk.Xpk, "slurm": slurm.Slurm, "local": local.Local}
"""Place → class of its options. The module of the class has `script` and `launch`."""

Place = TypeVar("Place")


@dataclasses.dataclass(frozen=True)
class _Command(Generic[Place]):
    """Launch a pretraining run."""

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.py")]
    """The config file of the run, such as configs/demo.py."""
    place: tyro.conf.OmitArgPrefixes[Place]
    """Options of the place."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what would be run, and run nothing."""


def main(argv: list[str]) -> int:
    """Run the verb; return the exit status of the launched program."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    place, *rest = argv
    require_command(place, SUBCOMMANDS, "plamo2 launch")
    split = rest.index("--") if "--" in rest else len(rest)
    kind = SUBCOMMANDS[place]
    command = parse(_Command[kind], rest[:split], f"plamo2 launch {place}", description=kind.__doc__)
    job, module = load_job(command.config, tuple(rest[split + 1 :])), sys.modules[kind.__module__]
    script = module.script(job, command.place)
    if disk := _lost_with(job, command.place):
        print(f"plamo2 launch: warning: output {job.output} is on the disk of {disk}", file=sys.stderr)
    if not command.dry_run:
        return module.launch(job, command.place)
    print(script, end="")
    return 0


def _lost_with(job: Job, options: Any) -> str | None:
    """Return the machine on whose own disk the output is, and what to do; None if the output is in a lasting and shared place."""
    match options:
        case gcloud.Gcloud() if job.output_is_local:
            several = not parse_slice(options.accelerator).fits_one_machine
            why = "each machine has its own disk" if several else "it is lost at a preemption"
            return f"a TPU VM ({why}). Add -- --output gs://BUCKET/runs" if several or options.spot else None
        case xpk.Xpk() if job.output_is_local:
            return "a pod, which is lost with the pod. Add -- --output gs://BUCKET/runs, or a folder on a shared file system"
        case slurm.Slurm() if options.nodes > 1 and job.output.startswith(("/tmp/", "/var/tmp/", "/dev/shm/")):
            return "each node. Add -- --output FOLDER with a folder that all nodes share"
    return None


def load_job(path: Path, overrides: tuple[str, ...]) -> Job:
    """Return the job of a config file. Overrides are resolved too, which finds errors before a machine is used.

    Raises:
        PlamoError: The config file or an override is wrong.
    """
    from plamo2_jax.cli.run_options import load_run, parse_config
    from plamo2_jax.storage import address
    from plamo2_jax.surgery.distill import Distill
    from plamo2_jax.train.pretraining import Pretrain

    fields = [word for word in overrides if word != NO_CACHE]
    run = load_run(path, (Pretrain, Distill), "configs/demo.py")
    config = parse_config(run, fields, f"plamo2 pretrain {path}")
    return Job(path, config.name, address(config.output), overrides, inputs(config))


def inputs(config: RunConfig) -> tuple[Input, ...]:
    """Return the files and folders that a run reads."""
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.storage import address

    fields = [
        ("tokenizer", config.tokenizer),
        *(("data.mixture", item.path) for item in config.data.mixture),
        *((f"heldout.{language}", path) for language, path in config.heldout.items()),
        ("init_from", config.init_from and ModelName.parse(config.init_from).folder),
        *((name, path and ModelName.parse(path).folder) for name, path in config.task.inputs.items()),
    ]
    # Shards in a bucket are read through a cache.
    readable = ("tokenizer",) if config.data.cache is None else ("tokenizer", "data.mixture", "heldout.")
    return tuple(
        Input(name, address(path), in_bucket=name.startswith(readable)) for name, path in fields if path is not None
    )
