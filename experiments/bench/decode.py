"""Tokens a second of decoding on this machine, and of another source tree in turns with it.

    python experiments/bench/decode.py [--other TREE] [--batches 1 16] [--turns 5] [--output decode.json]

A model of 51.3 million float32 parameters with random weights continues prompts of one token greedily by 128 tokens. TREE is a checkout of
another commit, with `src/` and `kernels/`; each tree runs in a process of its own, and the processes take turns, so that what else the
machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEW_TOKENS = 128

# Run by both trees: reads a number of rows from each line of standard input, writes tokens/s and the seconds of the first call.
WORKER = f"""
import functools, sys, time
import jax
from plamo2_jax.config import preset
from plamo2_jax.model import Plamo2, init_params
try:
    from plamo2_jax.engine.generator import Generator
    from plamo2_jax.engine.sampling import SamplingConfig
    from plamo2_jax.engine.stop import StopConfig
except ImportError:  # Before the engine.
    from plamo2_jax.infer.generate import Generator
    from plamo2_jax.infer.sampling import SamplingConfig
    from plamo2_jax.infer.stop import StopConfig

layers = int(sys.argv[1])
model = Plamo2(preset("tiny", hidden_size=512, num_hidden_layers=layers, intermediate_size=2048, num_attention_heads=8,
    num_key_value_heads=2, hidden_size_per_head=64, mamba_num_heads=16, mamba_d_state=64, vocab_size=32000,
    attention_window_size=256))
params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
generator = Generator(model, params)
greedy, stop = SamplingConfig(temperature=0.0), StopConfig(max_new_tokens={NEW_TOKENS}, ids=())
print(model.config.parameter_count(), flush=True)
for line in sys.stdin:
    prompts = [[i + 1] for i in range(int(line))]
    begun = time.perf_counter()
    rows = generator.generate(prompts, sampling=greedy, stop=stop)
    print(sum(len(row.token_ids) for row in rows) / (time.perf_counter() - begun), flush=True)
"""


class Tree:
    """A source tree in a process of its own."""

    def __init__(self, root: Path, links: Path, layers: int):
        # kernels/ is imported as plamo2_kernels.
        links.mkdir()
        (links / "plamo2_kernels").symlink_to(root / "kernels")
        environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{links}", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(layers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.parameters = int(self._process.stdout.readline())

    def tokens_per_second(self, rows: int) -> float:
        """Generate once."""
        print(rows, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Print and optionally write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="another source tree, to take turns with")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="rows decoded together")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each")
    parser.add_argument("--output", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        roots = {"this": ROOT} | ({"other": arguments.other.resolve()} if arguments.other else {})
        trees = {name: Tree(root, Path(scratch) / name, arguments.layers) for name, root in roots.items()}
        rows = {}
        for batch in arguments.batches:
            first = {name: NEW_TOKENS * batch / tree.tokens_per_second(batch) for name, tree in trees.items()}
            rates: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(arguments.turns):
                for name, tree in trees.items():
                    rates[name].append(tree.tokens_per_second(batch))
            rows[batch] = {
                name: {**spread(some), "seconds_of_the_first_call": round(first[name], 1)}
                for name, some in rates.items()
            }
            if "other" in trees:
                ratios = [new / old for new, old in zip(rates["this"], rates["other"], strict=True)]
                rows[batch]["ratio"] = spread(ratios, 2)
            print(f"{batch} rows: {json.dumps(rows[batch])}", flush=True)
        parameters = trees["this"].parameters
        for tree in trees.values():
            tree.close()
    results = {
        # The path of the other tree belongs to this machine.
        "command": "python experiments/bench/decode.py "
        + " ".join("TREE" if word == str(arguments.other) else word for word in sys.argv[1:]),
        "parameters": parameters,
        "new_tokens": NEW_TOKENS,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_after": round(os.getloadavg()[0], 2),
        "environment": {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ},
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "commits": {name: commit_of(root) for name, root in roots.items()},
        "tokens_per_second": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def spread(some: list[float], digits: int = 1) -> dict[str, float]:
    """Median, least and most."""
    figures = {"median": statistics.median(some), "least": min(some), "most": max(some)}
    return {name: round(value, digits) for name, value in figures.items()}


def commit_of(root: Path) -> str | None:
    """The commit of a checkout; None where it is not one."""
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or None


if __name__ == "__main__":
    main()
