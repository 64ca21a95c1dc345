"""What the parts share: options, a description of the machine, timing, and the JSON file of a part.

The parts that use torch import this file too, so it imports neither jax nor plamo2_jax at its top.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "numpy", "torch", "triton", "mamba-ssm")


def parse(description: str, argv: Sequence[str] | None, **extra: dict[str, Any]) -> argparse.Namespace:
    """Parse the options of a part.

    Args:
        extra: Further options: name with `_` for `-`, and the arguments of `add_argument`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on any platform")
    for name, settings in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return parser.parse_args(argv)


class Record:
    """The JSON file of a part. It is written after every figure, so a part that is stopped leaves the figures that it has.

    Args:
        path: File to write.
        command: Command to reproduce the figures, without paths of this machine.
        dry_run: Whether the sizes are tiny.
        device: Name of the device; None: not known.
    """

    def __init__(self, path: Path, command: str, dry_run: bool, device: str | None):
        self._path, self._begun = path, time.monotonic()
        self._content = {
            "command": command,
            "dry_run": dry_run,
            "device": device,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
            "driver": _driver(),
            "python": platform.python_version(),
            "versions": {name: found for name in PACKAGES if (found := _version(name))},
            "environment": {
                name: os.environ[name]
                for name in ("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE")
                if os.environ.get(name)
            },
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "complete": False,
            "figures": [],
        }
        self._write()

    def add(self, **figure: Any) -> None:
        """Add a figure, print it and write the file."""
        self._content["figures"].append(figure)
        print(json.dumps(figure), flush=True)
        self._write()

    def skip(self, sentence: str) -> None:
        """Record why the part does not run here."""
        self._content["skipped"] = sentence
        print(sentence, flush=True)
        self._write()

    def finish(self) -> None:
        """Mark the part as complete."""
        self._content["complete"] = True
        self._write()

    def _write(self) -> None:
        self._content["seconds"] = round(time.monotonic() - self._begun, 1)
        whole = self._path.with_name(f"{self._path.name}.part")
        whole.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
        whole.replace(self._path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Return the version of the NVIDIA driver; None if there is none."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most, with five digits."""
    figures = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def take_turns(
    runs: dict[str, Callable[[], Any]], wait: Callable[[Any], Any], turns: int, seconds: float = 0.05
) -> dict[str, dict[str, float]]:
    """Measure functions that start work on a device, taking turns.

    A turn calls a function several times and waits once, so that the time to start a call is hidden behind the call before.

    Args:
        runs: Functions by name. Each is called once before it is measured.
        wait: Waits for the result of a function.
        turns: Turns of each.
        seconds: Least duration of a turn.

    Returns:
        Seconds of a call: median, least and most, and `calls`, the number of calls in a turn.
    """
    calls, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        wait(run())
        begun = time.perf_counter()
        wait(run())
        calls[name] = max(1, round(seconds / (time.perf_counter() - begun)))
    for _ in range(turns):
        for name, run in runs.items():
            begun = time.perf_counter()
            for _ in range(calls[name]):
                result = run()
            wait(result)
            times[name].append((time.perf_counter() - begun) / calls[name])
    return {name: {**spread(each), "calls": calls[name]} for name, each in times.items()}


def command(script: str, options: argparse.Namespace) -> str:
    """Return the command of a part without the path of its output."""
    words = [f"python experiments/gpu/{Path(script).name}"]
    for name, value in sorted(vars(options).items()):
        if name != "output" and value not in (None, False):
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(words)


def jax_device(dry_run: bool) -> Any:
    """Return the first device. Outside of a dry run it must be a GPU.

    Raises:
        SystemExit: JAX sees no GPU.
    """
    import jax

    device = jax.devices()[0]
    if device.platform != "gpu" and not dry_run:
        sys.exit(f"JAX sees no GPU, only {device.device_kind}: install jax[cuda13], or give --dry-run")
    return device
