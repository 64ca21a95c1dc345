"""What the prefix cache and speculative decoding save on this machine's CPU.

    python experiments/serving/caching.py [--model RUN] --output experiments/serving/caching.json

Prefix cache: the second turn of a chat of 4,096 tokens, in seconds to the first token, with the cache and without it.
Speculation: tokens/s of one row with drafts and without them, in turns. "repeats" is greedy text: layers with
small outputs and tied embeddings repeat the last token, so nearly all drafts are kept. "no repeats" is text sampled at temperature 1 with
random weights. `--model` takes a trained model instead for both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from speed import generator_of, model, prompt, spread

from plamo2_jax.cli.allocator import keep_freed_memory
from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.scheduler import Scheduler
from plamo2_jax.engine.speculation import SpeculationConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models.local import open_generator

FIRST, TURN, NEW_TOKENS = 4096, 64, 192


def main() -> None:
    """Measure, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run folder; default: random weights")
    parser.add_argument("--turns", type=int, default=7, help="measurements of each")
    parser.add_argument("--output", type=Path, help="write the figures here")
    options = parser.parse_args()
    keep_freed_memory()
    generator = open_generator(options.model)[0] if options.model else generator_of(*model()[:2])
    repeating = generator if options.model else Generator(generator.model, with_small_layers(generator.params))
    results = {
        "seconds_to_first_token": first_tokens(generator, options.turns),
        "tokens_per_second": {
            "repeats": speculation(repeating, SamplingConfig(temperature=0), options.turns),
            "no repeats": speculation(generator, SamplingConfig(), options.turns),
        },
        "model": options.model or "random weights, 51.3 million parameters",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_after": round(os.getloadavg()[0], 2),
        "jax": metadata.version("jax"),
    }
    print(json.dumps(results, indent=1))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


def scheduler_of(generator: Generator, max_length: int, **settings) -> Scheduler:
    """Return a scheduler of one slot."""
    return Scheduler(Engine(generator.model, generator.params, slots=1, max_length=max_length, **settings), None)


def run(scheduler: Scheduler, request: Request) -> tuple[float, float]:
    """Run a request; return the seconds to its first token and to its end."""
    begun, first = time.perf_counter(), None
    scheduler.submit([request])
    while scheduler.busy:
        if scheduler.run_round() and first is None:
            first = time.perf_counter() - begun
    return first, time.perf_counter() - begun


def first_tokens(generator: Generator, turns: int) -> dict:
    """Return the seconds to the first token of the second turn of a chat, cold and after the first turn."""
    vocabulary = generator.model.config.vocab_size
    cache = PrefixCache(1 << 30)
    schedulers = {
        "cold": scheduler_of(generator, 2 * FIRST),
        "cached": scheduler_of(generator, 2 * FIRST, prefix_cache=cache),
    }
    seconds: dict[str, list[float]] = {name: [] for name in schedulers}
    for number in range(turns + 1):
        ids = np.array(prompt(FIRST + TURN, number, vocabulary), np.int32)
        for name, scheduler in schedulers.items():
            # The first turn, then the same conversation with an answer and another question.
            for length in (FIRST, FIRST + TURN):
                request = Request(
                    ids[:length], SamplingConfig(temperature=0), StopConfig(2), (), 0, 0, boundaries=(FIRST - 8,)
                )
                first, _ = run(scheduler, request)
            if number:  # The first round compiles.
                seconds[name].append(first)
    ratios = [a / b for a, b in zip(seconds["cached"], seconds["cold"], strict=True)]
    return {name: spread(some) for name, some in seconds.items()} | {"ratio": spread(ratios, 3)}


def with_small_layers(params: dict) -> dict:
    """Return parameters whose layers add little to the embedded token."""

    def shrink(path, leaf):
        names = [getattr(entry, "key", None) for entry in path]
        return leaf - 0.19 if "post_mixer_norm" in names else leaf - 0.085 if "post_mlp_norm" in names else leaf

    return jax.tree_util.tree_map_with_path(shrink, params)


def speculation(generator: Generator, sampling: SamplingConfig, turns: int) -> dict:
    """Return tokens/s with and without drafts."""
    vocabulary = generator.model.config.vocab_size
    schedulers = {
        "plain": scheduler_of(generator, 1024),
        "drafts": scheduler_of(generator, 1024, speculation=SpeculationConfig()),
    }
    rates: dict[str, list[float]] = {name: [] for name in schedulers}
    for number in range(turns + 1):
        ids = np.array(prompt(64, number, vocabulary), np.int32)
        request = Request(ids, sampling, StopConfig(NEW_TOKENS), (), 0, 0)
        for name, scheduler in schedulers.items():
            first, last = run(scheduler, request)
            if number:
                rates[name].append(NEW_TOKENS / (last - first))
    ratios = [a / b for a, b in zip(rates["drafts"], rates["plain"], strict=True)]
    return {name: spread(some) for name, some in rates.items()} | {"ratio": spread(ratios)}


if __name__ == "__main__":
    main()
