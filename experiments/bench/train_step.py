"""Tokens a second of the demo model's train step: the chunked scan against the same model with a sequential `lax.scan`.

    python experiments/bench/train_step.py [--rounds 7] [--output train_step.json]

Both are measured in one run, taking turns, so that what else the machine does falls on both. Random tokens; speed does not depend on them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import runpy
import statistics
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from plamo2_jax.train.build import build_train_program

IMPLEMENTATIONS = ("xla", "reference")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure the train step of a pretraining config."""

    config: Path = Path(__file__).parents[2] / "configs" / "demo.py"
    """A pretraining config."""
    batch_size: int | None = None
    """Rows; the config's when left out."""
    rounds: int = 7
    """Measurements of each implementation."""
    output: Path | None = None
    """Write the figures here."""


def prepare(config, implementation):
    """A compiled train step and its first state."""
    program = build_train_program(config, jax.devices()[:1], implementations={"implementation": implementation})
    return program.jit(), program.create_state()


def random_batch(config):
    """A full batch of three documents a row."""
    shape = (config.data.batch_size, config.data.sequence_length)
    rng = np.random.default_rng(0)
    cut = np.sort(rng.integers(0, shape[1], size=(shape[0], 2)), axis=1)
    segments = 1 + (np.arange(shape[1]) >= cut[:, :1]) + (np.arange(shape[1]) >= cut[:, 1:])
    tokens = rng.integers(0, config.model.vocab_size, size=shape)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "segment_ids": segments,
        "positions": np.indices(shape)[1],
    }
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    return {**batch, "loss_weights": jnp.ones(shape, jnp.float32)}


def main() -> None:
    """Print and optionally write the figures."""
    arguments = tyro.cli(Arguments, description=__doc__)
    config = runpy.run_path(str(arguments.config))["config"]
    if arguments.batch_size is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=arguments.batch_size))
    batch = random_batch(config)
    steps = {name: prepare(config, name) for name in IMPLEMENTATIONS}
    seconds: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    for turn in range(arguments.rounds + 1):
        for name, (step, state) in steps.items():
            start = time.perf_counter()
            state, metrics = step(state, batch, {})
            jax.block_until_ready((state, metrics))
            steps[name] = (step, state)
            if turn:  # The first turn compiles.
                seconds[name].append(time.perf_counter() - start)
    rates = {name: sorted(batch["tokens"].size / s for s in times) for name, times in seconds.items()}
    results = {
        "command": "make bench",
        "config": arguments.config.name,
        "parameters": config.model.parameter_count(),
        "batch": list(batch["tokens"].shape),
        "dtype": config.dtype,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}",
        "environment": {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ},
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "tokens_per_second": {
            name: {"median": statistics.median(r), "least": r[0], "most": r[-1]} for name, r in rates.items()
        },
        "ratio_of_medians": statistics.median(rates["xla"]) / statistics.median(rates["reference"]),
    }
    print(f"train step, {results['parameters']:,} parameters, batch {results['batch']}, {results['dtype']}")
    for name, r in results["tokens_per_second"].items():
        print(f"  {name:<10} {r['median']:>10,.0f} tokens/s  ({r['least']:,.0f} to {r['most']:,.0f})")
    print(f"  chunked scan over sequential scan: {results['ratio_of_medians']:.2f}x")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
