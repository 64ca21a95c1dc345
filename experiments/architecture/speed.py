"""Prefill and decode tokens per second, and bytes of the cache, by context length: a hybrid, full attention and a window in every layer.

python experiments/architecture/speed.py                                  # on a machine that does nothing else; 6 minutes on two cores
python experiments/architecture/speed.py --lengths 128 512 --turns 2 --output /tmp/speed    # a minute, to see that it runs

The three models have random weights and equally many parameters. At each context length they take turns: a turn reads a prompt of that many
tokens in pieces of 512, and then decodes 64 tokens, one row. Measured lengths are kept in speed.json, so the command resumes. README.md and
speed.png are written from what exists.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from arms import arms  # noqa: E402
from results_page import write  # noqa: E402
from scales import parse  # noqa: E402
from trials import where  # noqa: E402

from plamo2_jax.checkpoint import write_json  # noqa: E402
from plamo2_jax.cli.allocator import keep_freed_memory  # noqa: E402
from plamo2_jax.config import ModelConfig  # noqa: E402
from plamo2_jax.engine.engine import CAPACITY, Engine  # noqa: E402
from plamo2_jax.engine.generator import Generator  # noqa: E402
from plamo2_jax.engine.request import Request  # noqa: E402
from plamo2_jax.engine.sampling import SamplingConfig  # noqa: E402
from plamo2_jax.engine.stop import StopConfig  # noqa: E402
from plamo2_jax.engine.weights import order_for_cpu  # noqa: E402
from plamo2_jax.model import Plamo2, init_params  # noqa: E402
from plamo2_jax.model.cache import init_cache  # noqa: E402

BURSTS = 2
PIECE = 512
# A row has a few tokens more than it decodes: the engine also runs before the measured bursts.
NEW_TOKENS = (BURSTS + 1) * CAPACITY


def cache_bytes(config: ModelConfig, length: int, dtype: str) -> int:
    """Return the bytes of the cache of one row of `length` tokens: keys and values with their positions, and the states of Mamba layers."""
    cache = jax.eval_shape(functools.partial(init_cache, config, 1, length, jnp.dtype(dtype)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def generator_of(config: ModelConfig, dtype: str) -> Generator:
    """Return a generator with random weights."""
    model = Plamo2(config, dtype=jnp.dtype(dtype))
    generator = Generator(model, jax.jit(functools.partial(init_params, model))(jax.random.key(0)), prefill_size=PIECE)
    if jax.default_backend() == "cpu":
        generator.params = order_for_cpu(generator.model, generator.params)
    return generator


class Reader:
    """Reads prompts of one length and decodes after them.

    Args:
        generator: model and weights.
        length: tokens of a prompt.
    """

    def __init__(self, generator: Generator, length: int):
        self._length, self._vocabulary = length, generator.model.config.vocab_size
        self._engine = Engine(
            generator.model, generator.params, slots=1, max_length=length + NEW_TOKENS + 1, prefill_size=PIECE
        )
        # This compiles the programs: all pieces but the last have the same shape.
        self._turn(length if length <= PIECE else PIECE + length % PIECE, 0)

    def turn(self, number: int) -> dict[str, float]:
        """Read a prompt, decode, and return both speeds in tokens per second."""
        return self._turn(self._length, number)

    def _turn(self, length: int, number: int) -> dict[str, float]:
        prompt = np.random.default_rng(number).integers(300, self._vocabulary, length + 1).astype(np.int32)
        begun = time.perf_counter()
        prefix = self._engine.prefill(prompt)
        jax.block_until_ready(prefix.cache)
        prefill = length / (time.perf_counter() - begun)
        request = Request(prompt, SamplingConfig(temperature=0.0), StopConfig(NEW_TOKENS), (), 0, 0)
        self._engine.insert(0, prefix, request)
        self._engine.step(CAPACITY)
        begun = time.perf_counter()
        made = sum(int(self._engine.step(CAPACITY).filled.sum()) for _ in range(BURSTS))
        return {"prefill": prefill, "decode": made / (time.perf_counter() - begun)}


def measure(generators: Mapping[str, Generator], length: int, turns: int, seconds: float) -> dict[str, dict]:
    """Return both speeds of each model at a context length: median, least, most and the number of turns.

    Args:
        length: tokens of a prompt.
        turns: most turns of each model.
        seconds: after this time, no turn begins but the second.
    """
    readers = {kind: Reader(generator, length) for kind, generator in generators.items()}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in readers}
    begun = time.perf_counter()
    for number in range(1, turns + 1):
        if number > 2 and time.perf_counter() - begun > seconds:
            break
        for kind, reader in readers.items():
            found[kind].append(reader.turn(number))
    return {
        kind: {name: spread([turn[name] for turn in some]) for name in ("prefill", "decode")}
        for kind, some in found.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most with four digits, and the number of values."""
    figures = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()} | {"turns": len(values)}


def main() -> None:
    """Measure the lengths that are missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048, 8192, 32768], help="context lengths")
    parser.add_argument("--turns", type=int, default=5, help="most turns of each model and length (default 5)")
    parser.add_argument("--seconds", type=float, default=20, help="time of a length after which no third turn begins")
    options, scale = parse(parser, "architecture_speed", HERE)
    keep_freed_memory()
    compared = {arm.kind: arm.model for arm in arms(scale.models["hybrid"], scale.length, ("parameters",))}
    path = options.output / "speed.json"
    options.output.mkdir(parents=True, exist_ok=True)
    about = {
        "scale": options.scale,
        "models": {kind: config.to_json() for kind, config in compared.items()},
        "parameters": {kind: config.parameter_count() for kind, config in compared.items()},
        "dtype": scale.dtype,
        **where(),
    }
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if any(results.get(name) != value for name, value in about.items()):
        results = {"lengths": {}}
    lengths = [length for length in options.lengths if str(length) not in results["lengths"]]
    generators = {kind: generator_of(config, scale.dtype) for kind, config in compared.items()} if lengths else {}
    for length in sorted(lengths):
        found = measure(generators, length, options.turns, options.seconds)
        for kind, config in compared.items():
            found[kind]["cache_bytes"] = cache_bytes(config, length, scale.dtype)
        results["lengths"][str(length)] = {**found, "load_after": round(os.getloadavg()[0], 2)}
        command = "python experiments/architecture/speed.py" + (
            f" --scale {options.scale}" if options.scale != "cpu" else ""
        )
        write_json(path, {"command": command, **about, **results})
        print(length, json.dumps(found), flush=True)
    write(options.output)


if __name__ == "__main__":
    main()
