"""Decoding and prefill on this machine's CPU, with llama.cpp beside it.

    pip install '.[gguf]' xllamacpp
    python experiments/serving/speed.py --output experiments/serving/speed.json

A model of 51.3 million float32 parameters with random weights runs in our engine and in llama.cpp, on all cores, in two processes that take
turns. Each turn decodes 128 tokens after a prompt of 16 tokens, and reads a prompt of 512 tokens. Ours also decodes 16 rows together, which
llama.cpp cannot: it ends with a failed assertion in ggml.c.
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
VOCABULARY, NEW_TOKENS, PROMPT, WIDE = 32_000, 128, 512, 16


def model():
    """Return the model, its parameters and a vocabulary of as many rows as its embedding."""
    import functools

    import jax

    from plamo2_jax.config import preset
    from plamo2_jax.model import Plamo2, init_params
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

    network = Plamo2(
        preset(
            "tiny",
            hidden_size=512,
            num_hidden_layers=8,
            intermediate_size=2048,
            num_attention_heads=8,
            num_key_value_heads=2,
            hidden_size_per_head=64,
            mamba_num_heads=16,
            mamba_d_state=64,
            vocab_size=VOCABULARY,
            attention_window_size=2048,
        )
    )
    params = jax.jit(functools.partial(init_params, network))(jax.random.key(0))
    controls = [f"<|plamo:{name}|>" for name in ("bos", "eos", "pad", "op")]
    rows = [["<|plamo:unk|>", 0.0, "UNKNOWN"], *([name, 0.0, "CONTROL"] for name in controls)]
    rows += [[f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)]
    rows += [[f"w{i:05}", -10.0, "NORMAL"] for i in range(VOCABULARY - len(rows))]
    return network, params, Tokenizer.from_rows([[*row, 0, 0, 0, 0] for row in rows])


def generator_of(network, params, tokenizer=None):
    """Return a generator whose parameters are in the order in which `load_weights` gives them."""
    from plamo2_jax.engine.generator import Generator
    from plamo2_jax.engine.weights import order_for_cpu

    generator = Generator(network, params, tokenizer)
    generator.params = order_for_cpu(generator.model, generator.params)
    return generator


def write_model(path: Path) -> None:
    """Write the GGUF file."""
    from plamo2_jax.convert.gguf import write_gguf

    network, params, tokenizer = model()
    write_gguf(path, network.config, params, tokenizer, kind="f32", context_length=4096)


def prompt(length: int, number: int, vocabulary: int = VOCABULARY) -> list[int]:
    """Return random token ids; each number begins differently."""
    import numpy as np

    return np.random.default_rng(number).integers(300, vocabulary, length).tolist()


def run_ours() -> None:
    """Answer commands: a line "decode ROWS" or "prefill" on standard input, tokens/s on standard output."""
    import time

    import jax
    import numpy as np

    from plamo2_jax.cli.allocator import keep_freed_memory
    from plamo2_jax.engine.engine import Engine
    from plamo2_jax.engine.request import Request
    from plamo2_jax.engine.sampling import SamplingConfig
    from plamo2_jax.engine.stop import StopConfig

    keep_freed_memory()
    network, params, _ = model()
    generator = generator_of(network, params)
    # A row's cache is as long as `Generator` makes it for these lengths.
    engines = {rows: Engine(generator.model, generator.params, slots=rows, max_length=256) for rows in (1, WIDE)}
    reader = Engine(generator.model, generator.params, slots=1, max_length=1024)
    stop = StopConfig(NEW_TOKENS + 32)
    for number, line in enumerate(sys.stdin):
        kind, *rows = line.split()
        if kind == "prefill":
            ids = np.array(prompt(PROMPT + 1, number), np.int32)
            begun = time.perf_counter()
            jax.block_until_ready(reader.prefill(ids).cache)
            rate = PROMPT / (time.perf_counter() - begun)
        else:
            engine = engines[int(rows[0])]
            for slot in range(engine.slots):
                ids = np.array(prompt(16, number * WIDE + slot), np.int32)
                engine.insert(slot, engine.prefill(ids), Request(ids, SamplingConfig(temperature=0), stop, (), 0, 0))
            engine.step(32)
            begun = time.perf_counter()
            made = sum(int(engine.step(32).filled.sum()) for _ in range(NEW_TOKENS // 32))
            rate = made / (time.perf_counter() - begun)
        print(rate, flush=True)


def run_llama_cpp(path: str) -> None:
    """Answer the same commands with llama.cpp. Rates are the server's own."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch = 2048, 1, 512, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.cache_prompt = False
    params.warmup = True
    server = xllamacpp.Server(params)
    for number, line in enumerate(sys.stdin):
        kind = line.split()[0]
        length, count = (PROMPT, 1) if kind == "prefill" else (16, NEW_TOKENS)
        wanted = {
            "prompt": prompt(length, number),
            "n_predict": count,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        timings = server.handle_completions(wanted)["timings"]
        print(timings["prompt_per_second" if kind == "prefill" else "predicted_per_second"], flush=True)


class Worker:
    """One of the two processes."""

    def __init__(self, *arguments: str, script: str = __file__):
        self._process = subprocess.Popen(
            ["timeout", "-s", "KILL", "1800", sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def rate(self, command: str) -> float:
        """Return tokens/s of one command."""
        print(command, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            try:
                return float(line)
            except ValueError:
                continue
        raise SystemExit(f"the process ended at the command {command!r}")


def main() -> None:
    """Measure in turns, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="measurements of each")
    parser.add_argument("--output", type=Path, help="write the figures here")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, *rest = options.worker
        {"ours": run_ours, "llama.cpp": run_llama_cpp, "write": lambda path: write_model(Path(path))}[kind](*rest)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.gguf")
        subprocess.run([sys.executable, __file__, "--worker", "write", path], check=True)
        workers = {"ours": Worker("--worker", "ours"), "llama.cpp": Worker("--worker", "llama.cpp", path)}
        commands = {"decode 1": ["ours", "llama.cpp"], "prefill": ["ours", "llama.cpp"], f"decode {WIDE}": ["ours"]}
        rates = {(command, name): [] for command, names in commands.items() for name in names}
        for turn in range(options.turns + 1):
            for command, name in rates:
                rate = workers[name].rate(command)
                if turn:  # The first call compiles.
                    rates[command, name].append(rate)
    results = {"tokens_per_second": {}}
    for command, names in commands.items():
        row = {name: spread(rates[command, name]) for name in names}
        if len(names) == 2:
            row["ratio"] = spread([a / b for a, b in zip(*(rates[command, name] for name in names), strict=True)])
        results["tokens_per_second"][command] = row
        print(command, json.dumps(row))
    results |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "load_after": round(os.getloadavg()[0], 2),
        "versions": {name: metadata.version(name) for name in ("jax", "xllamacpp", "gguf")},
        "python": platform.python_version(),
    }
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


def spread(values: list[float], digits: int = 2) -> dict[str, float]:
    """Return median, least and most."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


if __name__ == "__main__":
    main()
