"""Tokens a second of sampling the demo model: many rows in one batch against the same rows one by one.

    python experiments/bench/sampling.py MODEL [--rows 64] [--rounds 5] [--output sampling.json]

Both take turns in one process, so that what else the machine does falls on both. A row is a prompt of the bundled held-out text and as many
new tokens as are asked for, with the end of the document switched off, so that both do the same work. Reading the prompts counts.
Drawing a token for each row is timed by itself too, on logits drawn from a normal distribution.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from plamo2_jax.data.corpus import documents
from plamo2_jax.engine.sampling import RowSampling, SamplingConfig, sample
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models.local import open_generator


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure sampling of a model."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or a folder of the public layout."""
    rows: int = 64
    """Rows of the batch: answers, samples of a prompt side by side."""
    samples: int = 4
    """Answers to each prompt; one by one, each reads the prompt anew."""
    alone: int = 8
    """How many of the rows are sampled one by one in each round; their time is by the token."""
    prompt_tokens: int = 32
    """Tokens of a prompt."""
    new_tokens: int = 64
    """Tokens of an answer."""
    temperature: float = 0.8
    """As in configs/preference_data.py."""
    top_p: float = 0.95
    """As in configs/preference_data.py."""
    rounds: int = 5
    """Measurements of each."""
    output: Path | None = None
    """Write the figures here."""


def main() -> None:
    """Print and optionally write the figures."""
    arguments = tyro.cli(Arguments, description=__doc__)
    generator, _ = open_generator(arguments.model, dtype="float32", max_slots=arguments.rows)
    prompts = read_prompts(generator.tokenizer, arguments.rows // arguments.samples, arguments.prompt_tokens)
    sampling = SamplingConfig(arguments.temperature, top_p=arguments.top_p)
    stop = StopConfig(max_new_tokens=arguments.new_tokens, ids=())

    def batched(seed: int) -> int:
        rows = generator.generate(prompts, sampling=sampling, stop=stop, seed=seed, samples=arguments.samples)
        return sum(len(row.token_ids) for row in rows)

    def one_by_one(seed: int) -> int:
        alone = (prompts[i % len(prompts)] for i in range(arguments.alone))
        rows = [generator.generate([prompt], sampling=sampling, stop=stop, seed=seed)[0] for prompt in alone]
        return sum(len(row.token_ids) for row in rows)

    rates: dict[str, list[float]] = {"batched": [], "one_by_one": []}
    for turn in range(arguments.rounds + 1):
        for name, run in (("batched", batched), ("one_by_one", one_by_one)):
            start = time.perf_counter()
            tokens = run(turn)
            if turn:  # The first turn compiles.
                rates[name].append(tokens / (time.perf_counter() - start))
    ratios = sorted(fast / slow for fast, slow in zip(rates["batched"], rates["one_by_one"], strict=True))
    results = {
        "command": "make bench",
        "parameters": generator.model.config.parameter_count(),
        "settings": {
            name: value for name, value in dataclasses.asdict(arguments).items() if name not in ("model", "output")
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}",
        "cores_used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "environment": {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ},
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "tokens_per_second": {
            name: {"median": statistics.median(some), "least": min(some), "most": max(some)}
            for name, some in rates.items()
        },
        "draw_milliseconds": draw_milliseconds(arguments.rows, generator.model.config.vocab_size, sampling),
        "ratio": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
    }
    print(f"sampling, {results['parameters']:,} parameters, {results['cores_used']} cores, {arguments.rows} rows")
    for name, rate in results["tokens_per_second"].items():
        print(f"  {name:<12} {rate['median']:>8,.0f} tokens/s  ({rate['least']:,.0f} to {rate['most']:,.0f})")
    print(f"  batched over one by one: {results['ratio']['median']:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"  drawing {arguments.rows} tokens: {results['draw_milliseconds']:.2f} ms")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def draw_milliseconds(rows: int, vocab_size: int, sampling: SamplingConfig) -> float:
    """Median time of one draw for all rows, of 50."""
    logits = 2.5 * jax.random.normal(jax.random.key(0), (rows, vocab_size))
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), rows)
    counts = np.zeros((rows, vocab_size), np.int32)
    settings = jax.tree.map(lambda value: np.full(rows, value), RowSampling.of(sampling))
    draw, times = jax.jit(sample), []
    for _ in range(51):
        start = time.perf_counter()
        jax.block_until_ready(draw(logits, keys, settings, counts))
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times[1:]), 3)  # The first compiles.


def read_prompts(tokenizer, count: int, length: int) -> list[np.ndarray]:
    """The beginnings of held-out documents, both languages in turn, as ids."""
    texts = [document["text"] for language in ("ja", "en") for document in documents(language, "heldout")]
    rows = (np.concatenate([[tokenizer.bos_id], tokenizer.encode(text[: 12 * length])]) for text in texts)
    long = [row[:length].astype(np.int32) for row in rows if len(row) >= length]
    if len(long) < count:
        raise SystemExit(f"the held-out text has {len(long)} documents of {length} tokens, fewer than {count} prompts")
    step = len(long) // count
    return long[::step][:count]


if __name__ == "__main__":
    main()
