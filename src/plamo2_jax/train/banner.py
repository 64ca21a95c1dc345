"""Messages of a run before its first step: its size, devices, data and initial state."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from plamo2_jax.log_format import emit, is_json
from plamo2_jax.train.config import RunConfig


def say(line: str) -> None:
    """Print a line to stderr in the first process."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def announce(config: RunConfig, trained: Any, mesh: Mesh, parts: Sequence[int], start: str) -> None:
    """Print the size, devices, data and initial state of a run.

    Args:
        trained: Tree of the trainable parameters.
        parts: Number of tokens in each part of the data mixture.
        start: Description of the initial state.
    """
    total = config.model.parameter_count()
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained))
    share = f", {count:,} trained" if count != total else ""
    rows, length = config.data.batch_size, config.data.sequence_length
    if jax.process_index() == 0:
        emit(
            "start",
            name=config.name,
            parameters=total,
            trained_parameters=count,
            devices=mesh.devices.size,
            device_kind=mesh.devices.flat[0].device_kind,
            processes=jax.process_count(),
            mesh=dict(mesh.shape),
            steps=config.steps,
            tokens_per_step=rows * length,
            state=start,
        )
    if is_json():
        return
    say(f"{config.name}: {total:,} parameters{share}; {config.dtype} activations")
    device, axes = mesh.devices.flat[0], " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    say(
        f"devices: {mesh.devices.size} {device.device_kind} in {jax.process_count()} process(es); mesh {axes}; "
        f"sharding {config.sharding}"
    )
    say(f"steps: {config.steps:,} with {rows} x {length} = {rows * length:,} tokens each; {_epochs(config, parts)}")
    say(f"start: {start}")


def _epochs(config: RunConfig, parts: Sequence[int]) -> str:
    """Return the number of epochs of each part of the mixture. Padding is counted too, so the true numbers are a little smaller."""
    tokens = config.steps * config.data.batch_size * config.data.sequence_length
    weights = [item.weight for item in config.data.mixture]
    described = [
        f"{tokens * weight / sum(weights) / size:.2f} epochs of {item.path} ({size:,} tokens)"
        for item, weight, size in zip(config.data.mixture, weights, parts, strict=True)
    ]
    return "about " + ", ".join(described[:4]) + (f" and {len(described) - 4} more" if len(described) > 4 else "")


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Print when compilation of the train step starts and how long it took."""
    say("compiling the train step ...")
    start = time.perf_counter()
    yield
    say(f"compiled in {time.perf_counter() - start:.1f} s")
