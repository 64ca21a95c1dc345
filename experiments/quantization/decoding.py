"""Tokens per second of decoding with the quantized models of run.py."""

from __future__ import annotations

import argparse
import statistics
import time

from variants import VARIANTS

from plamo2_jax.checkpoint import write_json
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import load_weights

NEW_TOKENS = 128


def measure_speed(arguments: argparse.Namespace) -> None:
    """Tokens per second of decoding with one row, the variants of a model in turns."""
    for name, path in arguments.models.items():
        folders = {"float": path}
        folders |= {v.name: arguments.work / name / "models" / f"{v.name}, 0" for v in VARIANTS}
        folders = {label: folder for label, folder in folders.items() if folder.exists()}
        generators = {}
        for label, folder in folders.items():
            network, loaded = load_weights(folder)
            generators[label] = Generator(network, loaded.params, loaded.tokenizer)
        greedy, stop = SamplingConfig(temperature=0.0), StopConfig(max_new_tokens=NEW_TOKENS, ids=())
        rates: dict[str, list[float]] = {label: [] for label in generators}
        for turn in range(arguments.turns + 1):
            for label, generator in generators.items():
                begun = time.perf_counter()
                rows = generator.generate([[1]], sampling=greedy, stop=stop)
                if turn:  # The first call compiles.
                    rates[label].append(len(rows[0].token_ids) / (time.perf_counter() - begun))
        (arguments.work / name).mkdir(parents=True, exist_ok=True)
        write_json(
            arguments.work / name / "speed.json",
            {
                label: {"median": statistics.median(some), "least": min(some), "most": max(some)}
                for label, some in rates.items()
            },
        )
