"""How fast XLA reads the matrices of the 51.3 million parameter model on CPU for one row, by the order of their axes.

python experiments/serving/layouts.py --output experiments/serving/layouts.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

# Inputs, outputs and number of the matrices: gate, up and the parts of in_proj; down; projections of the mixers.
PROJECTIONS = ((512, 2048, 16), (2048, 512, 8), (512, 1024, 8), (1024, 512, 8))
EMBEDDING = ((512, 32_000, 1),)
CASES = {
    "projections [inputs, outputs]": (PROJECTIONS, False),
    "projections [outputs, inputs]": (PROJECTIONS, True),
    "embedding [outputs, inputs]": (EMBEDDING, True),
}


def multiply(rows: dict[int, jax.Array], weights: list[jax.Array], outputs_first: bool) -> jax.Array:
    """Multiply a row by each matrix, one after the other."""
    last = jnp.float32(0)
    for weight in weights:
        inputs = weight.shape[1 if outputs_first else 0]
        # The term makes a product wait for the one before it, as in a model.
        y = jnp.einsum("rk,nk->rn" if outputs_first else "rk,kn->rn", rows[inputs] + 0 * last, weight)
        last = y[0, 0]
    return last


def main() -> None:
    """Measure, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60, help="measurements of each case")
    parser.add_argument("--output", type=Path, help="write the figures here")
    options = parser.parse_args()
    rows = {inputs: jnp.ones((1, inputs)) for inputs in (512, 1024, 2048)}
    run = jax.jit(multiply, static_argnums=2)
    weights = {}
    for name, (sizes, outputs_first) in CASES.items():
        shapes = [(n, k) if outputs_first else (k, n) for k, n, count in sizes for _ in range(count)]
        weights[name] = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    rates = {name: [] for name in CASES}
    for turn in range(options.turns + 1):
        for name, (_, outputs_first) in CASES.items():
            begun = time.perf_counter()
            jax.block_until_ready(run(rows, weights[name], outputs_first))
            seconds = time.perf_counter() - begun
            if turn:  # The first call compiles.
                rates[name].append(sum(each.nbytes for each in weights[name]) / seconds / 1e9)
    results = {
        "gigabytes_per_second": {
            name: {"median": statistics.median(each), "least": min(each), "most": max(each)}
            for name, each in rates.items()
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "jax": jax.__version__,
    }
    print(json.dumps(results, indent=1))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
