"""Peak host memory of loading a model for inference in bfloat16, against loading it whole in float32 and casting it then.

Generates a checkpoint of the 1B's shape with fewer layers and random weights, in the public layout (bfloat16) and as a run folder (float32,
as training writes it), and loads each in a process of its own. Peaks are `ru_maxrss` less what the imports took.

    python experiments/convert_memory/load.py        # 6 GB of disk, 4 GB of memory, two minutes
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import numpy as np
from run import HERE, convert, generate

from plamo2_jax.config import preset

# Prints the bytes of the parameters and by how much the peak rose.
WORKER = """
import resource, sys
import jax, numpy
from plamo2_jax.adapters.open import open_model
from plamo2_jax.engine.weights import cast_matrices, load_weights
from plamo2_jax.model import Plamo2
path, way = sys.argv[1:]
jax.numpy.zeros(1).block_until_ready()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
if way == "one tensor at a time":
    params = load_weights(path, dtype="bfloat16")[1].params
else:
    loaded = open_model(path)
    params = cast_matrices(Plamo2(loaded.config, dtype=jax.numpy.bfloat16), loaded.params)
jax.block_until_ready(params)
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)), peak() - before)
"""


def measure(path: Path, way: str) -> dict:
    """Load once."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", WORKER, str(path), way]
    output = subprocess.run(
        command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True
    )
    size, rise = map(int, output.stdout.split())
    seconds = round(time.perf_counter() - begun, 1)
    return {"way": way, "bf16_bytes": size, "peak_bytes": rise, "ratio": round(rise / size, 3), "seconds": seconds}


def main() -> None:
    """Measure and write load.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="layers of the model")
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoints; default: a temporary one")
    parser.add_argument("--output", type=Path, default=HERE / "load.json")
    arguments = parser.parse_args()
    config = dataclasses.replace(preset("plamo-2-1b"), num_hidden_layers=arguments.layers)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        public, run = Path(scratch) / "public", Path(scratch) / "run"
        generate(public, config, np.dtype(ml_dtypes.bfloat16), 500_000_000)
        convert("from-hf", public, run, "--dtype", "float32")
        for folder in (public, run):
            for way in ("whole, then cast", "one tensor at a time"):
                rows.append({"folder": folder.name, **measure(folder, way)})
                print(json.dumps(rows[-1]), flush=True)
    results = {
        "command": "python experiments/convert_memory/load.py " + " ".join(sys.argv[1:]),
        "parameters": config.parameter_count(),
        "versions": {name: version(name) for name in ("jax", "orbax-checkpoint", "tensorstore", "numpy")},
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
