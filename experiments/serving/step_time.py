"""Where the time of a decoding step and of a prefill goes on this machine's CPU.

    python experiments/serving/step_time.py --output experiments/serving/step_time.json --plot experiments/serving/step_time.png

The model is the one of `speed.py`. The times of operations come from `jax.profiler`, which makes a step longer, so the parts are given as
shares of the recorded time, and the time of a step is measured without it. "host" is the time of the scheduler's round outside of the
compiled program: calling it, fetching the tokens, and decoding them into text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from op_times import GROUPS, HOST, group_operations, recorded, split_time
from speed import PROMPT, WIDE, generator_of, model, prompt, spread

from plamo2_jax.cli.allocator import keep_freed_memory
from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.scheduler import Scheduler
from plamo2_jax.engine.stop import StopConfig

NEW_TOKENS = 160


def main() -> None:
    """Measure, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="measurements of each")
    parser.add_argument("--output", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the shares here")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        # XLA reads this variable at its first use.
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_(decode|prefill)"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        results = measure_all(Path(folder), options.turns)
    print(table(results))
    results |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_after": round(os.getloadavg()[0], 2),
        "jax": metadata.version("jax"),
        "python": platform.python_version(),
    }
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


def measure_all(programs: Path, turns: int) -> dict:
    """Measure decoding and prefill.

    Args:
        programs: folder into which XLA writes compiled programs.
        turns: measurements of each.
    """
    generator = generator_of(*model())
    results = {}
    for rows in (1, WIDE):
        results[f"decode {rows}"] = measure(programs, "jit_decode", *decoding(generator, rows), turns)
    results[f"prefill {PROMPT}"] = measure(programs, "jit_prefill", *prefilling(generator), turns)
    return results


def decoding(generator: Generator, rows: int) -> tuple[Callable[[int], None], Callable[[], int]]:
    """Return a function that prepares a turn, and one that runs it and returns the number of steps."""
    engine = Engine(generator.model, generator.params, slots=rows, max_length=256)
    # With a long interval, bursts have as many tokens as possible.
    scheduler = Scheduler(engine, generator.tokenizer, interval=1e9)

    def prepare(number: int) -> None:
        while scheduler.busy:
            scheduler.run_round()
        for row in range(rows):
            ids = np.array(prompt(16, number * WIDE + row), np.int32)
            scheduler.submit([Request(ids, SamplingConfig(temperature=0), StopConfig(NEW_TOKENS), (), 0, 0)])
        # Prompts are read before the first burst.
        for _ in range(2):
            scheduler.run_round()

    def run() -> int:
        deltas = [scheduler.run_round() for _ in range(2)]
        return sum(max(len(delta.token_ids) for delta in some) for some in deltas)

    return prepare, run


def prefilling(generator: Generator) -> tuple[Callable[[int], None], Callable[[], int]]:
    """Return functions as in `decoding`. A step reads a prompt."""
    engine = Engine(generator.model, generator.params, slots=1, max_length=1024)
    ids = np.array(prompt(PROMPT + 1, 0), np.int32)

    def prepare(number: int) -> None:
        jax.block_until_ready(engine.prefill((ids + number) % 32_000).cache)

    def run() -> int:
        for _ in range(3):
            jax.block_until_ready(engine.prefill(ids).cache)
        return 3

    return prepare, run


def measure(programs: Path, module: str, prepare: Callable[[int], None], run: Callable[[], int], turns: int) -> dict:
    """Return the milliseconds of a step, and the share of each group of operations."""
    pattern = f"*.{module}.*after_optimizations.txt"
    known = set(programs.glob(pattern))
    prepare(0)
    groups = group_operations(max(set(programs.glob(pattern)) - known).read_text())
    seconds, shares, unknown = [], {group: [] for group in GROUPS}, []
    for number in range(turns):
        prepare(2 * number + 1)
        begun = time.perf_counter()
        steps = run()
        seconds.append((time.perf_counter() - begun) / steps)
        prepare(2 * number + 2)
        with recorded(module) as calls:
            begun = time.perf_counter()
            run()
            whole = time.perf_counter() - begun
        parts, missing = split_time(calls, groups)
        parts[HOST] = whole - sum(parts.values())
        unknown.append(missing / whole)
        for group, part in parts.items():
            shares[group].append(100 * part / whole)
    return {
        "milliseconds": spread([1e3 * each for each in seconds]),
        "percent": {
            # Means add up to 100.
            group: {"mean": round(statistics.mean(some), 1), "least": round(min(some), 1), "most": round(max(some), 1)}
            for group, some in shares.items()
        },
        "percent_of_unknown_operations": round(100 * statistics.mean(unknown), 2),
    }


def table(results: dict) -> str:
    """Return the shares as a table in Markdown."""
    lines = ["| % of the time of a step | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for group in GROUPS:
        lines.append(
            f"| {group} | " + " | ".join(f"{row['percent'][group]['mean']:.1f}" for row in results.values()) + " |"
        )
    lines.append(
        "| milliseconds | " + " | ".join(f"{row['milliseconds']['median']:.1f}" for row in results.values()) + " |"
    )
    return "\n".join(lines)


def plot(results: dict, path: Path) -> None:
    """Draw a bar for each measurement."""
    from matplotlib.figure import Figure

    names = [name for name, row in results.items() if isinstance(row, dict)]
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(names)
    colours = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#BBBBBB", "#555555")
    for group, colour in zip(GROUPS, colours, strict=True):
        widths = [results[name]["percent"][group]["mean"] for name in names]
        axes.barh(names, widths, left=left, color=colour, label=group)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), [f"{name}\n{results[name]['milliseconds']['median']:.1f} ms" for name in names])
    axes.set(xlabel="% of the time of a step", xlim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
