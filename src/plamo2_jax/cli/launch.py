"""`plamo2 launch PLACE CONFIG.py`: run `plamo2 pretrain` on TPU slices, on a SLURM cluster, or as several processes here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from plamo2_jax.cli.arguments import call, require_command
from plamo2_jax.cli.compile_cache import NO_CACHE

if TYPE_CHECKING:
    from plamo2_jax.launch.job import Input, Job
    from plamo2_jax.train.config import RunConfig

_USAGE = """usage: plamo2 launch PLACE CONFIG.py [options] [--dry-run] [-- --field value ...]

Runs `plamo2 pretrain CONFIG.py` on other machines, or as several processes. Arguments after -- go to pretrain. --dry-run only prints
what would be run, to read, keep, or pipe into shellcheck, bash, kubectl or sbatch.

  gcloud    a TPU slice of your own: requests a queued resource, installs, trains, and starts again after a preemption
  xpk       TPU slices of a GKE cluster: a JobSet for kubectl, or XPK's command
  slurm     a SLURM cluster: an sbatch script that queues itself again
  local     several processes on this machine

example: plamo2 launch slurm configs/demo.py --nodes 4 --gpus-per-node 8 --dry-run -- --output /shared/runs

plamo2 launch PLACE --help explains a place; docs/launch.md shows each of them. A run resumes from its newest checkpoint wherever it is
started again: with more than one machine, set --output to a bucket (gs://...) or a folder on a shared file system."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status of what was launched."""
    place, rest = (argv[0], argv[1:]) if argv else (None, [])
    if place in (None, "-h", "--help"):
        print(_USAGE, file=sys.stderr if place is None else sys.stdout)
        return 2 if place is None else 0
    require_command(place, SUBCOMMANDS, "plamo2 launch")
    split = rest.index("--") if "--" in rest else len(rest)
    return SUBCOMMANDS[place](rest[:split], tuple(rest[split + 1 :]))


def gcloud(argv: list[str], overrides: tuple[str, ...]) -> int:
    """A queued TPU resource."""
    from plamo2_jax.launch import gcloud as place
    from plamo2_jax.launch.slices import parse_slice

    job, options, dry_run = _parse("gcloud", place.Gcloud, argv, overrides)
    text = place.script(job, options)
    several = not parse_slice(options.accelerator).fits_one_machine
    if job.output_is_local and (several or options.spot):
        why = "each machine has its own disk" if several else "it is lost at a preemption"
        _warn(job, f"the disk of a TPU VM ({why}). Add -- --output gs://BUCKET/runs")
    return _print(text) if dry_run else place.launch(job, options)


def xpk(argv: list[str], overrides: tuple[str, ...]) -> int:
    """A JobSet in GKE."""
    from plamo2_jax.launch import xpk as place

    job, options, dry_run = _parse("xpk", place.Xpk, argv, overrides)
    text = place.text(job, options)
    if job.output_is_local:
        _warn(
            job,
            "the disk of a pod, which is lost with the pod. Add -- --output gs://BUCKET/runs, or a folder on a shared file system",
        )
    return _print(text) if dry_run else place.launch(job, options)


def slurm(argv: list[str], overrides: tuple[str, ...]) -> int:
    """An sbatch script."""
    from plamo2_jax.launch import slurm as place

    job, options, dry_run = _parse("slurm", place.Slurm, argv, overrides)
    text = place.script(job, options)
    if options.nodes > 1 and job.output.startswith(("/tmp/", "/var/tmp/", "/dev/shm/")):
        _warn(job, "the disk of each node. Add -- --output FOLDER with a folder that all nodes share")
    return _print(text) if dry_run else place.launch(job, options)


def local(argv: list[str], overrides: tuple[str, ...]) -> int:
    """Processes on this machine."""
    from plamo2_jax.launch import local as place

    job, options, dry_run = _parse("local", place.Local, argv, overrides)
    return _print(place.script(job, options)) if dry_run else place.launch(job, options)


def _print(text: str) -> int:
    print(text, end="")
    return 0


SUBCOMMANDS = {"gcloud": gcloud, "xpk": xpk, "slurm": slurm, "local": local}


def _parse(place: str, options: Any, argv: list[str], overrides: tuple[str, ...]) -> tuple[Job, Any, bool]:
    """Parse the command line. Return the job, the options of the place, and whether to only print."""

    def read(config: Path, place: Any, dry_run: bool = False) -> tuple[Path, Any, bool]:
        """Launch a pretraining run.

        Args:
            config: The config file of the run, such as configs/demo.py.
            place: Options of the place.
            dry_run: Print what would be run, and run nothing.
        """
        return config, place, dry_run

    # The type of the options is known only now.
    read.__annotations__ = {
        "config": Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.py")],
        "place": tyro.conf.OmitArgPrefixes[options],
        "dry_run": tyro.conf.FlagCreatePairsOff[bool],
    }
    config, chosen, dry_run = call(read, argv, f"plamo2 launch {place}", description=_DESCRIPTIONS[place])
    return load_job(config, overrides), chosen, dry_run


_DESCRIPTIONS = {
    "gcloud": "Train on a TPU slice: request a queued resource, wait for it, install the project on all workers, train, and start "
    "again after a preemption. Needs gcloud with an account, a project and a zone.",
    "xpk": "Train on TPU slices of a GKE cluster with JobSet installed. Needs a container image with the project, and kubectl or xpk.",
    "slurm": "Train on a SLURM cluster, from a folder that all nodes share. Needs sbatch.",
    "local": "Train with several processes on this machine; each line of output starts with the number of its process.",
}


def load_job(path: Path, overrides: tuple[str, ...]) -> Job:
    """Return the job of a config file. Overrides are resolved too, so that errors are found before a machine is used.

    Raises:
        ValueError: The config file or an override is wrong.
    """
    from plamo2_jax.cli.run_options import load_run, parse_config
    from plamo2_jax.launch.job import Job
    from plamo2_jax.storage import address
    from plamo2_jax.surgery.distill import Distill
    from plamo2_jax.train.pretraining import Pretrain

    fields = [word for word in overrides if word != NO_CACHE]
    run = load_run(path, (Pretrain, Distill), "configs/demo.py")
    config = parse_config(run, fields, f"plamo2 pretrain {path}")
    return Job(path, config.name, address(config.output), overrides, inputs(config))


def inputs(config: RunConfig) -> tuple[Input, ...]:
    """Return the inputs of a run, field by field."""
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.launch.job import Input
    from plamo2_jax.storage import address

    fields = [
        ("tokenizer", config.tokenizer),
        *(("data.mixture", item.path) for item in config.data.mixture),
        *((f"heldout.{language}", path) for language, path in config.heldout.items()),
        ("init_from", config.init_from and ModelName.parse(config.init_from).folder),
        *((name, path and ModelName.parse(path).folder) for name, path in config.task.inputs.items()),
    ]
    return tuple(Input(name, address(path), in_bucket=name == "tokenizer") for name, path in fields if path is not None)


def _warn(job: Job, where: str) -> None:
    print(f"plamo2 launch: warning: output {job.output} is on {where}", file=sys.stderr)
