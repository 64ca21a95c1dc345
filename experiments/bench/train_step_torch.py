"""Tokens a second of a train step against transformers' Bamba in PyTorch, with the same dimensions, in turns.

    python experiments/bench/train_step_torch.py [--python PYTHON] [--rounds 3] [--output train_step_torch.json]

PYTHON runs an environment with torch and transformers, by default this one (`make peers` installs both). Each side trains 51.3 million
float32 parameters with AdamW on four rows of 512 random tokens, on all cores. The two processes take turns of five steps, so that what else
the machine does falls on both. The first step of a turn is not counted: on some virtual machines, the memory of a process that waited is
mapped again page by page. Differences: Bamba's attention sees the whole row, ours 256 tokens; our step also masks documents, clips
gradients, and computes a z-loss and metrics.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import jax
import tyro
from train_step import prepare, random_batch

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config

ROWS, LENGTH = 4, 512
STEPS = 5
"""Steps of a turn."""

# Reads a line for each step; writes the number of parameters and versions first, then the seconds of each step.
TORCH = f"""
import json, os, sys, time
import torch, transformers
torch.set_num_threads(os.cpu_count()); torch.manual_seed(0); transformers.logging.set_verbosity_error()
model = transformers.BambaForCausalLM(transformers.BambaConfig(
    vocab_size=32000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
    attn_layer_indices=[1, 3, 5, 7], mamba_n_heads=16, mamba_d_head=64, mamba_d_state=64, mamba_d_conv=4, mamba_expand=2,
    mamba_n_groups=1, mamba_chunk_size=int(sys.argv[1]), tie_word_embeddings=True, use_cache=False))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
tokens = torch.randint(0, 32000, ({ROWS}, {LENGTH}))
versions = {{"torch": torch.__version__, "transformers": transformers.__version__}}
print(json.dumps({{"parameters": sum(p.numel() for p in model.parameters()), "versions": versions}}), flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(time.perf_counter() - begun, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare train steps of this project and of PyTorch."""

    python: str = sys.executable
    """Python of an environment with torch and transformers."""
    torch_chunk_size: int = 256
    """Tokens per chunk of Bamba's scan. 256 is the default of transformers."""
    rounds: int = 3
    """Turns of each side."""
    output: Path | None = None
    """Write the figures here."""


def main() -> None:
    """Print and optionally write the figures."""
    arguments = tyro.cli(Arguments, description=__doc__)
    demo = load_config(Path(__file__).parents[2] / "configs" / "demo.py")
    model = preset(
        "tiny",
        hidden_size=512,
        num_hidden_layers=8,
        intermediate_size=2048,
        num_attention_heads=8,
        num_key_value_heads=2,
        hidden_size_per_head=64,
        mamba_num_heads=16,
        mamba_d_state=64,
        vocab_size=32000,
        attention_window_size=256,
    )
    config = dataclasses.replace(
        demo, model=model, data=dataclasses.replace(demo.data, batch_size=ROWS, sequence_length=LENGTH)
    )
    command = [arguments.python, "-c", TORCH, str(arguments.torch_chunk_size)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        other = json.loads(process.stdout.readline())
        step, state = prepare(config, "xla")
        batch = random_batch(config)

        def ours() -> float:
            nonlocal state
            begun = time.perf_counter()
            state, metrics = step(state, batch, {})
            jax.block_until_ready((state, metrics))
            return time.perf_counter() - begun

        def theirs() -> float:
            print(file=process.stdin, flush=True)
            return float(process.stdout.readline())

        sides = {"plamo2-jax": ours, "torch": theirs}
        ours()  # Compiles.
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, take_step in sides.items():
                seconds[name] += [take_step() for _ in range(STEPS)][1:]
        process.stdin.close()
    rates = {name: sorted(ROWS * LENGTH / s for s in times) for name, times in seconds.items()}
    results = {
        "command": "make bench-torch",
        "parameters": {"plamo2-jax": model.parameter_count(), "torch": other["parameters"]},
        "batch": [ROWS, LENGTH],
        "dtype": config.dtype,
        "torch_chunk_size": arguments.torch_chunk_size,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}",
        "environment": {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ},
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")} | other["versions"],
        "tokens_per_second": {
            name: {"median": statistics.median(r), "least": r[0], "most": r[-1]} for name, r in rates.items()
        },
        "ratio_of_medians": statistics.median(rates["plamo2-jax"]) / statistics.median(rates["torch"]),
    }
    print(f"train step, {model.parameter_count():,} parameters, batch {ROWS} x {LENGTH}, {config.dtype}")
    for name, r in results["tokens_per_second"].items():
        print(f"  {name:<10} {r['median']:>8,.0f} tokens/s  ({r['least']:,.0f} to {r['most']:,.0f})")
    print(f"  plamo2-jax over torch: {results['ratio_of_medians']:.2f}x")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
