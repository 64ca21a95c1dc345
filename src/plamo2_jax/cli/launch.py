"""`plamo2 launch PLACE CONFIG`: run `plamo2 pretrain` or workers of `plamo2 synth` on other machines, or as several processes here."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import tyro

from plamo2_jax.cli.arguments import parse, require_command
from plamo2_jax.cli.compile_cache import NO_CACHE
from plamo2_jax.errors import PlamoError
from plamo2_jax.launch import gcloud, local, slurm, synth_gke, synth_slurm, xpk
from plamo2_jax.launch.job import Input, Job
from plamo2_jax.launch.slices import parse_slice
from plamo2_jax.launch.synth_job import SynthJob

if TYPE_CHECKING:
    from plamo2_jax.train.config import RunConfig

_USAGE = """usage: plamo2 launch PLACE CONFIG [options] [--dry-run] [-- --field value ...]

Runs `plamo2 pretrain CONFIG.py` on other machines, or as several processes. Arguments after -- are passed to plamo2 pretrain. --dry-run
only prints the script or manifest, so you can review it, save it, or pipe it into bash, kubectl or sbatch.

  gcloud    a TPU slice in Google Cloud: requests a queued resource, installs, trains, and restarts after a preemption
  xpk       TPU slices of a GKE cluster: a JobSet for kubectl, or a command for XPK
  slurm     a SLURM cluster: an sbatch script that requeues itself
  local     several processes on this machine

Workers of `plamo2 synth CONFIG.yaml`, which share a run folder (docs/synthetic_cluster.md):

  synth-slurm   a SLURM array: one job for each worker
  synth-gke     an indexed Job in a GKE cluster: one pod for each worker

example: plamo2 launch slurm configs/demo.py --nodes 4 --gpus-per-node 8 --dry-run -- --output /shared/runs

plamo2 launch PLACE --help explains a place; docs/launch.md has an example of each. A restarted run resumes from its newest checkpoint. With
several machines, set --output to a bucket (gs://...) or to a folder on a shared file system."""


SYNTH = {"synth-slurm": synth_slurm.SynthSlurm, "synth-gke": synth_gke.SynthGke}
"""Places for workers of `plamo2 synth`, and the classes of their options."""
SUBCOMMANDS = {"gcloud": gcloud.Gcloud, "xpk": xpk.Xpk, "slurm": slurm.Slurm, "local": local.Local, **SYNTH}
"""Place → class of its options. The module of the class has `script` and `launch`."""

_LOCAL = ("/tmp/", "/var/tmp/", "/dev/shm/")
"""Folders on the disk of a machine."""

Place = TypeVar("Place")


@dataclasses.dataclass(frozen=True)
class _Command(Generic[Place]):
    """Launch a pretraining run."""

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.py")]
    """The config file of the run, such as configs/demo.py."""
    place: tyro.conf.OmitArgPrefixes[Place]
    """Options of the place."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the script, manifest or command, and run nothing."""


@dataclasses.dataclass(frozen=True)
class _SynthCommand(Generic[Place]):
    """Launch workers of `plamo2 synth`."""

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.yaml")]
    """The config file of the run."""
    place: tyro.conf.OmitArgPrefixes[Place]
    """Options of the place."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the script, manifest or command, and run nothing."""


def main(argv: list[str]) -> int:
    """Run the command and return the exit status of the launched program."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    place, *rest = argv
    require_command(place, SUBCOMMANDS, "plamo2 launch")
    split = rest.index("--") if "--" in rest else len(rest)
    kind = SUBCOMMANDS[place]
    shape = _SynthCommand if place in SYNTH else _Command
    command = parse(shape[kind], rest[:split], f"plamo2 launch {place}", description=kind.__doc__)
    overrides, module = tuple(rest[split + 1 :]), sys.modules[kind.__module__]
    if place in SYNTH:
        job = load_synth(command.config, overrides)
        script = module.script(job, command.place)
    else:
        job, config = load_job(command.config, overrides)
        script = module.script(job, command.place)
        _require_mesh(config, command.place)
    if disk := _lost_with(job, command.place):
        print(f"plamo2 launch: warning: output {job.output} is on the disk of {disk}", file=sys.stderr)
    if not command.dry_run:
        return module.launch(job, command.place)
    print(script, end="")
    return 0


def load_synth(path: Path, overrides: tuple[str, ...]) -> SynthJob:
    """Return the workers of a config file of `plamo2 synth`.

    Raises:
        PlamoError: The config file is wrong, the run folder is in a bucket, or there are overrides.
    """
    from plamo2_jax.storage import is_remote
    from plamo2_jax.synth.config import read_config

    if overrides:
        raise PlamoError(f"arguments after -- are not allowed for plamo2 synth ({overrides[0]}): change {path} instead")
    config = read_config(path)
    if is_remote(config.output):
        raise PlamoError(
            f"output {config.output} is in a bucket, which does not support atomic links and renames: it must "
            "be a folder on a file system that all workers share, such as NFS, Lustre or Filestore"
        )
    keys = [model.api_key_env for model in (config.generator, config.judge) if model is not None]
    names = tuple(dict.fromkeys(key for key in keys if key is not None))
    return SynthJob(path, config.output.name, config.output, names)


def _lost_with(job: Job | SynthJob, options: Any) -> str | None:
    """Return the machine on whose own disk the output is, and what to do; None if the output is in a lasting and shared place."""
    match options:
        case synth_slurm.SynthSlurm() if str(job.output).startswith(_LOCAL):
            return "each node. Set `output` in the config to a folder that all nodes share"
        case gcloud.Gcloud() if job.output_is_local:
            several = not parse_slice(options.accelerator).fits_one_machine
            why = "each machine has its own disk" if several else "it is lost at a preemption"
            return f"a TPU VM ({why}). Add -- --output gs://BUCKET/runs" if several or options.spot else None
        case xpk.Xpk() if job.output_is_local:
            return "a pod, which is lost with the pod. Add -- --output gs://BUCKET/runs, or a folder on a shared file system"
        case slurm.Slurm() if options.nodes > 1 and job.output.startswith(_LOCAL):
            return "each node. Add -- --output FOLDER with a folder that all nodes share"
    return None


def _devices(place: Any) -> tuple[int | None, int]:
    """Return the number of devices of a place, None if only its machines know it, and the number of processes."""
    match place:
        case gcloud.Gcloud():
            chosen = parse_slice(place.accelerator)
            return chosen.devices, 1 if chosen.fits_one_machine else chosen.hosts
        case xpk.Xpk():
            chosen = parse_slice(place.accelerator)
            return chosen.devices * place.slices, chosen.hosts * place.slices
        case slurm.Slurm() if place.gpus_per_node:
            return place.nodes * place.gpus_per_node, place.nodes * place.processes
        case local.Local() if place.devices:
            return place.processes * place.devices, place.processes
    return None, 1


def _require_mesh(config: RunConfig, place: Any) -> None:
    """Raise PlamoError if the mesh or the batch does not fit the devices of a place."""
    from plamo2_jax.train.prepare import usable_devices

    devices, processes = _devices(place)
    if devices is not None:
        usable_devices(config, devices, processes)


def load_job(path: Path, overrides: tuple[str, ...]) -> tuple[Job, RunConfig]:
    """Return the job and the run of a config file. Overrides are resolved too, which finds errors before a machine is used.

    Raises:
        PlamoError: The config file or an override is wrong.
    """
    from plamo2_jax.cli.run_options import load_run, parse
    from plamo2_jax.storage import address
    from plamo2_jax.surgery.distill import Distill
    from plamo2_jax.train.pretraining import Pretrain

    fields = [word for word in overrides if word != NO_CACHE]
    run = load_run(path, (Pretrain, Distill), "configs/demo.py")
    options = parse("pretrain", str(path), run, fields)
    joining = options.distributed
    if (joining.coordinator, joining.process_id, joining.process_count) != (None, None, None):
        raise PlamoError(
            "--distributed.coordinator, process-id and process-count are not allowed here: the launcher sets them"
        )
    config = options.config
    return Job(path, config.name, address(config.output), overrides, inputs(config)), config


def inputs(config: RunConfig) -> tuple[Input, ...]:
    """Return the files and folders that a run reads."""
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.storage import address

    fields = [
        ("tokenizer", config.tokenizer),
        *(("data.mixture", item.path) for item in config.data.mixture),
        *((f"heldout.{language}", path) for language, path in config.heldout.items()),
        ("init_from", config.init_from and ModelName.parse(config.init_from).folder),
        ("fork", config.fork and ModelName.parse(config.fork).folder),
        *((f"evaluation.paths.{task}", path) for task, path in config.evaluation.paths.items()),
        *((name, path and ModelName.parse(path).folder) for name, path in config.task.inputs.items()),
    ]
    # Shards in a bucket are read through a cache.
    readable = ("tokenizer", "fork", *(() if config.data.cache is None else ("data.mixture", "heldout.")))
    return tuple(
        Input(name, address(path), in_bucket=name.startswith(readable)) for name, path in fields if path is not None
    )
