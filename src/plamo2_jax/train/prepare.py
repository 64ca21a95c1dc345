"""Preparation of a run before the first step. All checks come before anything is written."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from plamo2_jax.data.batch import Batch
from plamo2_jax.progress import tqdm
from plamo2_jax.sharding.rules import process_part
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train import run_folder
from plamo2_jax.train.banner import announce, compiling
from plamo2_jax.train.benchmarks import Benchmarks
from plamo2_jax.train.build import TrainProgram, build_train_program
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.device_prefetch import DevicePrefetch
from plamo2_jax.train.fork import FORKED_FROM, Fork, open_fork
from plamo2_jax.train.local_checkpoints import LocalCheckpoints
from plamo2_jax.train.run_folder import TrainingError
from plamo2_jax.train.source import Source

OpenBenchmarks = Callable[[RunConfig, Tokenizer, Sequence[jax.Device]], Benchmarks]
"""Opens the tasks of a run before its first step, on its devices. Raises PlamoError if one cannot be answered."""


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start or to resume."""

    program: TrainProgram
    train_step: Callable[..., Any]
    """The compiled step."""
    source: Source
    batches: DevicePrefetch
    """The training batches, on the devices."""
    part: tuple[int, int]
    """Part of each batch that this process reads: its index, and the number of parts."""
    is_resumed: bool
    fork: Fork | None
    on_evaluate: Callable[[int, Any], None] | None
    """Called with step and model parameters at every evaluation."""
    benchmarks: Benchmarks | None
    """The tasks of `evaluation.tasks`."""
    local: LocalCheckpoints | None
    """The local checkpoints of `local_checkpoints`."""


def prepare(
    config: RunConfig, take_lock: Callable[[], None], open_benchmarks: OpenBenchmarks | None = None
) -> PreparedRun:
    """Build the program and the data of a run, open its benchmark tasks, check and describe its folder, and compile the step.

    Raises:
        PlamoError: See `train.loop.train`.
    """
    tokenizer = run_folder.load_tokenizer(config)
    on_evaluate = config.task.on_evaluate(config)
    devices = _devices(config)
    benchmarks = None
    if config.evaluation.tasks:
        if open_benchmarks is None:
            raise TrainingError(
                f"evaluation.tasks={config.evaluation.tasks} is not allowed without a function that opens tasks: pass "
                "open_benchmarks=plamo2_jax.eval.in_training.open_benchmarks to train"
            )
        benchmarks = open_benchmarks(config, tokenizer, devices)
    program = build_train_program(config, devices, tokenizer)
    part = process_part(program.rows, program.batch["tokens"].shape)
    source = config.task.make_source(config, tokenizer)
    iterator = source.train(*part)
    transform = program.task.transform_batch

    def place(batch: Batch) -> dict[str, jax.Array]:
        return program.put(batch if transform is None else transform(batch))

    batches = DevicePrefetch(iterator, place, config.device_prefetch)
    local = None
    if config.local_checkpoints is not None:
        local = LocalCheckpoints(config.local_checkpoints, config.folder, program.state)
    local_step = None if local is None else local.newest
    is_resumed = run_folder.is_resumed(config, local_step)
    description = run_folder.describe(config, tokenizer, source, program.task.description)
    if config.init_from is not None and not is_resumed:
        run_folder.check_initial_shape(config)
    fork = None if is_resumed else open_fork(config, program.state, description)
    if is_resumed:
        description = run_folder.check_resumable(config, description, local_step)
    elif fork is not None:
        description[FORKED_FROM] = dict(fork.origin)
    take_lock()
    if run_folder.is_resumed(config, local_step) != is_resumed:
        raise TrainingError(
            f"{config.folder} was written by another process in the meantime. Run the command again to resume"
        )
    run_folder.write_description(config, tokenizer, source, description)
    if local is not None:
        local.begin()
    start = run_folder.start(config, fork, is_resumed, local_step)
    announce(config, program.task.trainable.abstract, program.mesh, source.targets, start)
    with compiling():
        lowered = program.jit().lower(*program.arguments)
        try:
            train_step = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if config.compiler_options and "option" in str(error):
                raise TrainingError(f"compiler_options={config.compiler_options} is not allowed: {error}") from error
            raise
    return PreparedRun(program, train_step, source, batches, part, is_resumed, fork, on_evaluate, benchmarks, local)


def _devices(config: RunConfig) -> list[jax.Device]:
    """Return the devices to train on: as many as can divide the rows of a micro-batch. A line on stderr reports unused devices.

    Raises:
        TrainingError: A job of several processes has unused devices, but every process must take part.
    """
    devices = jax.devices()
    usable, message = usable_devices(config, len(devices), jax.process_count())
    if message:
        tqdm.write(message, file=sys.stderr)
    return devices[:usable]


def usable_devices(config: RunConfig, devices: int, processes: int) -> tuple[int, str | None]:
    """Return how many devices can divide the rows of a micro-batch, and a message if some devices are unused.

    Raises:
        PlamoError: The mesh does not fit the number of devices or the rows, or a job of several processes has unused
            devices, but every process must take part.
    """
    rows = config.data.batch_size // config.accumulation
    usable = config.mesh.usable_devices(devices, rows)
    config.mesh.shape(usable)
    if usable == devices:
        return usable, None
    if processes > 1:
        parts = math.prod(config.mesh.shape(devices)[:2])
        raise TrainingError(
            f"data.batch_size={config.data.batch_size} is not allowed: with {processes} processes, mesh.data × mesh.fsdp = {parts} must "
            f"divide the {rows} rows of a micro-batch. Give --data.batch-size a multiple of {parts * config.accumulation}"
        )
    return usable, (
        f"training uses only {usable} of {devices} devices: a micro-batch has {rows} rows (data.batch_size / accumulation), which must "
        "be a multiple of mesh.data × mesh.fsdp to use all devices"
    )
