"""Decoding with float32, int8 and int4 weights on this machine's CPU, with llama.cpp in F32 and Q8_0 beside it.

    pip install '.[gguf]' xllamacpp
    python experiments/quantization/speed.py --output experiments/quantization/speed.json

The model and the turns are those of experiments/serving/speed.py: 51.3 million parameters with random weights, 128 tokens after a prompt of
16. int8 has one scale for each output; int4 has groups of 64, with the embedding and the output projections of Mamba in int8. The
projections to B, C and the step size stay in float32, also in Q8_0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving"))
import speed as serving

ROWS = (1, 16)
KINDS = ("float32", "int8", "int8 activations", "int4")


def quantized(network, params, kind: str):
    """Return the parameters in a kind of `KINDS`."""
    import dataclasses

    import jax

    from plamo2_jax.model import axes, declarations
    from plamo2_jax.model.quantized import QuantizedArray, quantize_params

    def large(declared):
        return axes.is_matrix(declared.names) and not {axes.STATE, axes.DT_RANK} & set(declared.names)

    def in_eight_bits(declared):
        reads_scan = declared.contracts == (axes.MAMBA_HEADS, axes.HEAD_DIM)
        return large(declared) and (axes.VOCAB in declared.names or reads_scan)

    declared = declarations(network)
    if kind == "float32":
        return params
    if kind == "int4":
        some = quantize_params(params, declared, 8, select=in_eight_bits)
        rest = quantize_params(params, declared, 4, 64, select=lambda one: large(one) and not in_eight_bits(one))
        return jax.tree.map(
            lambda one, other: one if isinstance(one, QuantizedArray) else other,
            some,
            rest,
            is_leaf=lambda leaf: isinstance(leaf, QuantizedArray),
        )
    made = quantize_params(params, declared, 8, select=large)
    if kind == "int8":
        return made
    return jax.tree.map(
        lambda leaf: dataclasses.replace(leaf, activations="int8") if isinstance(leaf, QuantizedArray) else leaf,
        made,
        is_leaf=lambda leaf: isinstance(leaf, QuantizedArray),
    )


def run_ours(kinds: str) -> None:
    """Answer lines "KIND ROWS" on standard input with tokens/s on standard output."""
    import time

    import numpy as np

    from plamo2_jax.cli.allocator import keep_freed_memory
    from plamo2_jax.engine.engine import Engine
    from plamo2_jax.engine.request import Request
    from plamo2_jax.engine.sampling import SamplingConfig
    from plamo2_jax.engine.stop import StopConfig

    keep_freed_memory()
    network, params, _ = serving.model()
    engines = {}
    for kind in kinds.split(","):
        generator = serving.generator_of(network, quantized(network, params, kind))
        for rows in ROWS:
            engines[kind, rows] = Engine(generator.model, generator.params, slots=rows, max_length=256)
    stop = StopConfig(serving.NEW_TOKENS + 32)
    for number, line in enumerate(sys.stdin):
        kind, rows = line.strip().rsplit(" ", 1)
        engine = engines[kind, int(rows)]
        for slot in range(engine.slots):
            ids = np.array(serving.prompt(16, number * 16 + slot), np.int32)
            engine.insert(slot, engine.prefill(ids), Request(ids, SamplingConfig(temperature=0), stop, (), 0, 0))
        engine.step(32)
        begun = time.perf_counter()
        made = sum(int(engine.step(32).filled.sum()) for _ in range(serving.NEW_TOKENS // 32))
        print(made / (time.perf_counter() - begun), flush=True)


def write_model(path: str, kind: str) -> None:
    """Write the GGUF file."""
    from plamo2_jax.convert.gguf import write_gguf

    network, params, tokenizer = serving.model()
    write_gguf(Path(path), network.config, params, tokenizer, kind=kind.lower(), context_length=4096)


def main() -> None:
    """Measure in turns, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="measurements of each")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which of ours")
    parser.add_argument("--alone", action="store_true", help="without llama.cpp")
    parser.add_argument("--output", type=Path, help="write the figures here")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, *rest = options.worker
        {"ours": run_ours, "llama.cpp": serving.run_llama_cpp, "write": write_model}[kind](*rest)
        return
    kinds = options.kinds.split(",")
    with tempfile.TemporaryDirectory() as folder:
        workers = {"ours": serving.Worker("--worker", "ours", options.kinds, script=__file__)}
        for kind in () if options.alone else ("F32", "Q8_0"):
            path = str(Path(folder) / f"{kind}.gguf")
            subprocess.run([sys.executable, __file__, "--worker", "write", path, kind], check=True)
            workers[kind] = serving.Worker("--worker", "llama.cpp", path, script=__file__)
        rates = {("ours", f"{kind} {rows}"): [] for rows in ROWS for kind in kinds}
        rates |= {(name, "decode 1"): [] for name in workers if name != "ours"}
        for turn in range(options.turns + 1):
            for worker, command in rates:
                rate = workers[worker].rate(command)
                if turn:  # The first call compiles.
                    rates[worker, command].append(rate)
    results = {"tokens_per_second": {}, "ratios": {}}
    for (worker, command), values in rates.items():
        name = command if worker == "ours" else f"llama.cpp {worker} 1"
        results["tokens_per_second"][name] = serving.spread(values)
    named = {name if worker == "ours" else worker: rates[worker, name] for worker, name in rates}
    pairs = [
        ("int8 1", "Q8_0"),
        ("int8 1", "float32 1"),
        ("int4 1", "int8 1"),
        ("int8 16", "float32 16"),
        ("float32 1", "F32"),
    ]
    for one, other in pairs:
        if one in named and other in named:
            ratios = [a / b for a, b in zip(named[one], named[other], strict=True)]
            results["ratios"][f"{one} / {other}"] = serving.spread(ratios)
    libraries = ("jax",) if options.alone else ("jax", "xllamacpp", "gguf")
    results |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_after": round(os.getloadavg()[0], 2),
        "versions": {name: metadata.version(name) for name in libraries},
        "python": platform.python_version(),
    }
    print(json.dumps(results, indent=1))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
