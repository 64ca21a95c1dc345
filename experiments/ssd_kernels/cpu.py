"""Speed of the selective scan on this machine's CPU: ours against other ways to compute it and other packages' code.

    pip install --no-deps mamba2-jax==1.1.2
    python experiments/ssd_kernels/cpu.py [--rounds 9] [--site TORCH_VENV/lib/python3.11/site-packages] [--output cpu.json]

All take turns in one process on the same float32 inputs, one document a row, so that what else the machine does falls on all. Each is
checked against the recurrence first. "forward" makes y; "both" y and the gradients of x, dt, A, B, C and D under the same cotangent.
A package that is not there is left out. `--site` appends a directory of packages to the path: PyTorch need not be in our environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from plamo2_kernels.ssd import ssd

SHAPES = {
    "h=32 p=64 n=64 t=2048": (1, 2048, 32, 64, 64),
    "the demo: b=2 t=512 h=8 p=64 n=64": (2, 512, 8, 64, 64),
    "a layer of 1B: h=32 p=128 n=64 t=2048": (1, 2048, 32, 128, 64),
}
NAMES = ("x", "dt", "A", "B", "C", "D")
# The associative scan holds a state a token, and its gradient several times as much.
MOST_BYTES_OF_STATES = {"forward": 1.1e9, "both": 3e8}
# What is slow is measured a few times only.
FEWEST_ROUNDS, SECONDS_EACH = 3, 10


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure the scan on CPU."""

    rounds: int = 9
    """Measurements of each."""
    site: Path | None = None
    """A directory of packages to append to the path, say another environment's site-packages with torch and transformers."""
    output: Path | None = None
    """Write the figures here."""


Runs = dict[str, Callable[[], object]]
"""What to time: "forward" and "both", each waiting for its result and returning it."""


def arrays(shape: tuple[int, ...]) -> list[np.ndarray]:
    """x, dt, A, B, C, D and the cotangent of y; decays as at initialization."""
    b, t, h, p, n = shape
    rng = np.random.default_rng(0)
    inputs = [
        rng.normal(size=(b, t, h, p)),
        np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), size=(b, t, h))),
        -np.arange(1.0, h + 1),
        rng.normal(size=(b, t, 1, n)),
        rng.normal(size=(b, t, 1, n)),
        np.ones(h),
        rng.normal(size=(b, t, h, p)),
    ]
    return [np.asarray(v, np.float32) for v in inputs]


def associative_scan(x, dt, A, B, C, D):
    """The recurrence by `lax.associative_scan` on pairs of (decay, state): a state for every token."""
    updates = jnp.einsum("bth,bthp,btn->bthpn", dt, x, B[:, :, 0])

    def compose(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    _, states = lax.associative_scan(compose, (jnp.exp(dt * A)[..., None, None], updates), axis=1)
    return jnp.einsum("bthpn,btn->bthp", states, C[:, :, 0]) + D[:, None] * x


def mamba2_jax(chunk_size: int) -> Callable:
    """The SSD function of PyPI's mamba2-jax, called as its mixer calls it: B and C repeated for every head, dt before softplus."""
    from mamba2_jax.modeling import ssd_forward

    def function(x, dt, A, B, C, D):
        heads = x.shape[2]
        raw = dt + jnp.log(-jnp.expm1(-dt))
        B, C = (jnp.repeat(v, heads, axis=2) for v in (B, C))
        return ssd_forward(x, raw, A, B, C, chunk_size, D, jnp.zeros(heads), 0.0, float("inf"))[0]

    return function


def in_jax(function: Callable, inputs: list[np.ndarray]) -> Runs:
    """Compiled by XLA."""
    *inputs, cotangent = map(jnp.asarray, inputs)

    def loss(*inputs):
        y = function(*inputs)
        return jnp.vdot(y, cotangent), y

    forward = jax.jit(function)
    both = jax.jit(jax.grad(loss, argnums=tuple(range(len(NAMES))), has_aux=True))
    return {
        "forward": lambda: jax.block_until_ready(forward(*inputs)),
        "both": lambda: jax.block_until_ready(both(*inputs)),
    }


def in_torch(chunk_size: int, inputs: list[np.ndarray]) -> Runs:
    """The plain PyTorch path of transformers' Mamba-2, in eager mode, as it runs without the CUDA package."""
    import torch
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    *inputs, cotangent = map(torch.from_numpy, inputs)

    def forward(inputs):
        x, dt, A, B, C, D = inputs
        return mamba2_chunk_scan(x, dt, A, B, C, chunk_size, D=D)

    def without_gradients():
        with torch.no_grad():
            return forward(inputs)

    def both():
        leaves = [v.detach().requires_grad_() for v in inputs]
        y = forward(leaves)
        return torch.autograd.grad(y, leaves, cotangent), y.detach()

    return {"forward": without_gradients, "both": both}


def candidates(shape: tuple[int, ...], inputs: list[np.ndarray]) -> tuple[dict[str, Runs], dict[str, str]]:
    """What can be measured here, and why the rest cannot."""

    def ours(implementation):
        return lambda *inputs: ssd(*inputs, implementation=implementation)[0]

    makers = {
        "ours, xla": lambda: in_jax(ours("xla"), inputs),
        "ours, reference (lax.scan)": lambda: in_jax(ours("reference"), inputs),
        "lax.associative_scan": lambda: in_jax(associative_scan, inputs),
        # Its default, and the size at which it is fastest here.
        "mamba2-jax, chunks of 256": lambda: in_jax(mamba2_jax(256), inputs),
        "mamba2-jax, chunks of 64": lambda: in_jax(mamba2_jax(64), inputs),
        "transformers (torch), chunks of 256": lambda: in_torch(256, inputs),
        "transformers (torch), chunks of 64": lambda: in_torch(64, inputs),
    }
    found, left_out = {}, {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            left_out[name] = str(error)
    for kind, most in MOST_BYTES_OF_STATES.items():
        states = 4 * np.prod(shape, dtype=float)
        if states > most:
            del found["lax.associative_scan"][kind]
            left_out[f"lax.associative_scan, {kind}"] = f"its states alone take {states / 1e9:.1f} GB"
    return {name: runs for name, runs in found.items() if runs}, left_out


def error(actual: object, expected: np.ndarray) -> float:
    """Relative, in L2."""
    return float(np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected))


def check(runs: dict[str, Runs]) -> None:
    """Everyone computes the same."""
    gradients, y = jax.tree.map(np.asarray, runs["ours, reference (lax.scan)"]["both"]())
    for name, kinds in runs.items():
        for kind, run in kinds.items():
            result = run()
            pairs = {"y": (result, y)}
            if kind == "both":
                pairs = {"y": (result[1], y), **dict(zip(NAMES, zip(result[0], gradients, strict=True), strict=True))}
            for what, (actual, expected) in pairs.items():
                if not error(actual, expected) < 1e-4:
                    raise SystemExit(f"{name}, {kind}: {what} differs by {error(actual, expected):.1e}")


def measure(runs: dict[str, Runs], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of each, taking turns."""
    seconds = {(name, kind): [] for name, kinds in runs.items() for kind in kinds}
    for turn in range(rounds):
        for name, kind in list(seconds)[:: 1 if turn % 2 else -1]:
            times = seconds[name, kind]
            if len(times) >= FEWEST_ROUNDS and sum(times) > SECONDS_EACH:
                continue
            start = time.perf_counter()
            runs[name][kind]()
            times.append(time.perf_counter() - start)
    results: dict[str, dict] = {name: {} for name in runs}
    for (name, kind), times in seconds.items():
        results[name][kind] = {
            "median_ms": 1e3 * statistics.median(times),
            "least_ms": 1e3 * min(times),
            "most_ms": 1e3 * max(times),
            "rounds": len(times),
        }
    return results


def version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Print and optionally write the figures."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.site:
        sys.path.append(str(arguments.site))
    packages = ("jax", "jaxlib", "mamba2-jax", "torch", "transformers")
    results = {
        "command": f"python experiments/ssd_kernels/cpu.py --rounds {arguments.rounds}",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}",
        "environment": {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ},
        "versions": {name: version(name) for name in packages},
        "dtype": "float32",
        "shapes": {},
    }
    for title, shape in SHAPES.items():
        runs, left_out = candidates(shape, arrays(shape))
        check(runs)
        figures = measure(runs, arguments.rounds)
        tokens = shape[0] * shape[1]
        ours = figures["ours, xla"]
        for kinds in figures.values():
            for kind, values in kinds.items():
                values["tokens_per_second"] = 1e3 * tokens / values["median_ms"]
                values["ours_is_faster_by"] = values["median_ms"] / ours[kind]["median_ms"]
        results["shapes"][title] = {"b t h p n": shape, "figures": figures, "left_out": left_out}
        print(f"{title}: milliseconds, median (least to most), and how many times faster ours, xla is")
        for name, kinds in figures.items():
            columns = (
                f"{kind} {v['median_ms']:7.1f} ({v['least_ms']:.1f} to {v['most_ms']:.1f}) {v['ours_is_faster_by']:5.2f}x"
                for kind, v in kinds.items()
            )
            print(f"  {name:<36}" + "   ".join(columns))
        for name, reason in left_out.items():
            print(f"  left out: {name}: {reason}")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
