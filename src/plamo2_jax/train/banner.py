"""What a run says before its first step: its size, its devices, its data, and where it starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from plamo2_jax.train.config import RunConfig


def say(line: str) -> None:
    """Print a line to stderr, in the first process only."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def announce(config: RunConfig, trained: Any, mesh: Mesh, parts: Sequence[int], start: str) -> None:
    """Print the facts of a run.

    Args:
        config: the run.
        trained: tree of what is trained.
        mesh: the devices.
        parts: tokens in each part of the data mixture.
        start: where the run starts.
    """
    total = config.model.parameter_count()
    ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained))
    share = f", {ours:,} trained" if ours != total else ""
    say(f"{config.name}: {total:,} parameters{share}; {config.dtype} activations")
    device, axes = mesh.devices.flat[0], " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    say(
        f"devices: {mesh.devices.size} {device.device_kind} in {jax.process_count()} process(es); mesh {axes}; "
        f"sharding {config.sharding}"
    )
    rows, length = config.data.batch_size, config.data.sequence_length
    say(f"steps: {config.steps:,} of {rows} x {length} = {rows * length:,} tokens; {_epochs(config, parts)}")
    say(f"start: {start}")


def _epochs(config: RunConfig, parts: Sequence[int]) -> str:
    """Return how often each part of the mixture is read. Padding is not subtracted, so the true numbers are a little smaller."""
    tokens = config.steps * config.data.batch_size * config.data.sequence_length
    weights = [item.weight for item in config.data.mixture]
    described = [
        f"{tokens * weight / sum(weights) / size:.2f} epochs of {item.path} ({size:,} tokens)"
        for item, weight, size in zip(config.data.mixture, weights, parts, strict=True)
    ]
    return "about " + ", ".join(described[:4]) + (f" and {len(described) - 4} more" if len(described) > 4 else "")


class Compiling:
    """Context manager that reports when compiling the train step starts and how long it took."""

    def __enter__(self) -> Compiling:
        say("compiling the train step ...")
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            say(f"compiled in {time.perf_counter() - self._start:.1f} s")
