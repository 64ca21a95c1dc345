"""Peak memory and time of quantizing the 1B by GPTQ.

    python experiments/quantization/memory.py [--preset plamo-2-1b] [--layers 16] [--samples 16] [--output memory.json]

Writes random weights in the shape of the preset, in bfloat16 and the public layout, as PLaMo 2 is published. Quantizes them in a process
of its own with `plamo2 quantize --method gptq --bits 4`, which computes in float32. Records the largest resident memory of the process
and its time. The bar is the float32 model's bytes + 4 GB.
Memory grows with the calibration rows by tokens × hidden size × 4 bytes: 0.5 GB for the default of 128 rows of 512 tokens.
`--layers` cuts the model to measure less: each layer takes the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

from plamo2_jax.config import preset
from plamo2_jax.convert.hf import write_public
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

ALLOWED, LENGTH = 4 * 2**30, 512


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of single bytes: random weights do not care which tokens they read."""
    rows = [[UNK, 0.0, "UNKNOWN"], *([name, 0.0, "CONTROL"] for name in (BOS, EOS, PAD))]
    return Tokenizer.from_rows([*rows, *([f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256))])


def write_model(folder: Path, name: str, layers: int | None) -> None:
    """Write random weights. Called in a process of its own, so that its memory is not measured."""
    config = preset(name)
    if layers is not None:
        config = dataclasses.replace(config, num_hidden_layers=layers)

    @jax.jit
    def make(key):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), init_params(Plamo2(config), key))

    write_public(folder, config, make(jax.random.key(0)), byte_tokenizer(), dtype=jnp.bfloat16)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="plamo-2-1b")
    parser.add_argument("--layers", type=int, help="layers of the model; left out, all")
    parser.add_argument("--samples", type=int, default=16, help="calibration rows of 512 tokens")
    parser.add_argument("--method", default="gptq", choices=["gptq", "awq", "awq+gptq"])
    parser.add_argument(
        "--work", type=Path, help="folder for the models, which an interrupted run continues; left out, a temporary one"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "memory.json")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_model(arguments.write, arguments.preset, arguments.layers)
        return
    config = preset(arguments.preset)
    if arguments.layers is not None:
        config = dataclasses.replace(config, num_hidden_layers=arguments.layers)
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, out = work / "model", work / "out"
        if not model.exists():
            layers = [] if arguments.layers is None else ["--layers", str(arguments.layers)]
            write = [sys.executable, __file__, "--write", model, "--preset", arguments.preset, *layers]
            subprocess.run(write, check=True)
        rows = min(8, arguments.samples)
        command = ["quantize", model, out, "--method", arguments.method, "--bits", "4"]
        command += ["--samples", arguments.samples, "--batch-size", rows, "--sequence-length", LENGTH]
        before = len(list(work.glob("out.progress/layer_*")))
        begun = time.monotonic()
        program = "import sys; from plamo2_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
        child = subprocess.Popen([sys.executable, "-c", program, *map(str, command)])
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"plamo2 quantize failed with status {status}")
        seconds = time.monotonic() - begun
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    model_bytes = 4 * config.parameter_count()
    peak = usage.ru_maxrss * 1024
    settings = {"preset": arguments.preset, "layers": arguments.layers, "samples": arguments.samples}
    settings |= {"method": arguments.method}
    options = [f"--{name} {value}" for name, value in settings.items() if value is not None]
    results = {
        "command": " ".join(["python experiments/quantization/memory.py", *options]),
        "preset": arguments.preset,
        "layers": config.num_hidden_layers,
        "layers_quantized_by_an_interrupted_run": before,
        "method": arguments.method,
        "calibration_tokens": arguments.samples * LENGTH,
        "batch_tokens": rows * LENGTH,
        "model_bytes": model_bytes,
        "written_bytes": written,
        "peak_bytes": peak,
        "above_the_model": peak - model_bytes,
        "allowed_above_the_model": ALLOWED,
        "seconds": round(seconds, 1),
        "user_seconds": round(usage.ru_utime, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_after": round(os.getloadavg()[0], 2),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib")},
    }
    print(json.dumps(results, indent=2))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if peak - model_bytes > ALLOWED:
        raise SystemExit("the peak is above the model's bytes + 4 GB")


if __name__ == "__main__":
    main()
