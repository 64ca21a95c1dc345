"""Plan the programs of a run, each in a separate compiler process; find the nearest change that fits."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import get_args

from plamo2_jax.errors import PlamoError
from plamo2_jax.model.block import Remat
from plamo2_jax.plan import step
from plamo2_jax.plan.compiler import ENVIRONMENT, libtpu_version
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.step import StepPlan
from plamo2_jax.plan.worker import Worker
from plamo2_jax.train.config import RunConfig

# Remat policies, from the most saved activations to the fewest.
_REMAT = get_args(Remat)


def plan(request: Request) -> StepPlan:
    """Compile one program for its slice.

    Raises:
        PlamoError: libtpu is not installed, there is no such slice, or the run cannot be divided over it.
        RuntimeError: the compiler process ended; the message has the end of its log.
    """
    libtpu_version()  # Refuses before a process starts.
    with Worker() as worker:
        return worker.call(step.compile_step, request)


def gpu_argument_bytes(request: Request) -> dict[str, int]:
    """Return the bytes of a train step's arguments on each of `request.gpus` devices by kind, and their total as "all".

    Raises:
        PlamoError: the run cannot be divided over the devices.
        RuntimeError: the compiler process ended.
    """
    # The program is compiled for its arguments only and never runs: its code may be slow.
    flags = f"--xla_force_host_platform_device_count={request.gpus} --xla_backend_optimization_level=0"
    with Worker(lambda _: {**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags}) as worker:
        return worker.call(step.gpu_argument_bytes, request)


def changes(config: RunConfig, devices: int) -> Iterator[tuple[str, RunConfig]]:
    """Yield changes that need less memory as (options, config), the nearest first. Each includes the changes before it."""
    replace = dataclasses.replace
    per_device = config.data.batch_size // config.accumulation // math.prod(config.mesh.shape(devices)[:2])
    for remat in _REMAT[_REMAT.index(config.remat) + 1 : -1]:
        config = replace(config, remat=remat)
        yield f"--remat {remat}", config
    if config.loss_chunk is None and config.data.sequence_length % 512 == 0:
        config = replace(config, loss_chunk=512)
        yield "--loss-chunk 512", config
    while per_device > 1 and per_device % 2 == 0:
        per_device //= 2
        config = replace(config, accumulation=config.accumulation * 2)
        yield f"--accumulation {config.accumulation}", config
    data = config.mesh.data
    while data > 1 and data % 2 == 0 and (data // 2) % config.mesh.slices == 0:
        data //= 2
        fsdp = config.mesh.fsdp if config.mesh.fsdp == -1 else config.mesh.fsdp * 2
        config = replace(config, mesh=replace(config.mesh, data=data, fsdp=fsdp))
        yield f"--mesh.data {data}" + (f" --mesh.fsdp {fsdp}" if fsdp != -1 else ""), config
    for tensor in (2, 4, 8):
        if devices % (tensor * max(data, 1)) == 0 and config.mesh.fsdp == -1 and config.mesh.tensor < tensor:
            config = replace(config, mesh=replace(config.mesh, tensor=tensor))
            yield f"--mesh.tensor {tensor}", config


def nearest_fit(request: Request, devices: int) -> tuple[list[str], Request, StepPlan] | None:
    """Return the first of `changes` with which the program fits, as (options, request, plan); None if none fits."""
    made: list[str] = []
    for change, config in changes(request.config, devices):
        option = change.split()[0]
        made = [other for other in made if other.split()[0] != option] + [change]
        changed = dataclasses.replace(request, config=config)
        with contextlib.suppress(PlamoError):
            found = plan(changed)
            if found.fits:
                return made, changed, found
    return None
