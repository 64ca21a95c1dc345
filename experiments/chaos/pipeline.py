"""Kill a pipeline again and again at random times, and compare all that it makes with what one makes that nobody touched."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.model.plamo2 import Plamo2, abstract_params
from plamo2_jax.pipeline.files import LOGS
from plamo2_jax.pipeline.state import FOLDER
from plamo2_jax.storage import files_below
from plamo2_jax.train.metrics import METRICS, read_metrics

ROOT = Path(__file__).resolve().parents[2]
SHORT = Path(__file__).with_name("short_demo.py")
WITH_TIMES = frozenset({"report.html"})
"""Outputs that hold times of day or durations."""


def start(folder: Path, file: Path) -> subprocess.Popen:
    """`plamo2 pipeline`, in a process of its own that works in a folder."""
    command = [sys.executable, "-m", "plamo2_jax.cli.main", "pipeline", str(file)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(folder: Path, file: Path) -> None:
    """Run to the end."""
    process = start(folder, file)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"the pipeline in {folder} ended with status {process.returncode}: {error[-3000:]}")


def kill_at_random(
    folder: Path,
    file: Path,
    kills: int,
    longest: float,
    rng: random.Random,
    on_end: Callable[[], None] = lambda: None,
) -> list[dict]:
    """SIGKILL a pipeline so many times, each at a time drawn from [0, longest] seconds after its start; says where each one hit.

    `on_end` is called when it got to its end in between; it is then begun anew, so that each kill hits one with work to do.
    """
    found = []
    while len(found) < kills:
        seconds = rng.uniform(0, longest)
        process = start(folder, file)
        try:
            _, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, error = process.communicate()
        if process.returncode == 0:
            on_end()
            shutil.rmtree(folder / "runs")
            continue
        # Only what we killed is a kill: a pipeline that fails by itself must not pass for one.
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the pipeline ended by itself with status {process.returncode}: {error[-3000:]}")
        heads = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("[")]
        where = heads[-1] if heads else "before the first stage"
        found.append({"seconds": round(seconds, 2), "at": where})
        print(f"kill {len(found)}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def outputs(home: Path) -> dict[str, Path]:
    """What a pipeline made, by path in its home: files, and folders of checkpoints as one; without logs and the pipeline's records."""
    found = {}
    for path in files_below(home):
        parts = path.relative_to(home).parts
        if parts[0] == FOLDER or LOGS.intersection(parts) - {METRICS} or parts[-1] in WITH_TIMES:
            continue
        if checkpoint.CHECKPOINTS in parts:
            parts = parts[: parts.index(checkpoint.CHECKPOINTS) + 1]
        found["/".join(parts)] = home.joinpath(*parts)
    return found


def same(left: Path, right: Path) -> bool:
    """Whether two outputs are the same: the parameters of all checkpoints, the losses in a log, the bytes of any other file."""
    if left.name == checkpoint.CHECKPOINTS:
        runs = left.parent, right.parent
        steps = checkpoint.steps(runs[0])
        return steps == checkpoint.steps(runs[1]) and all(_same_params(*runs, step) for step in steps)
    if left.name == METRICS:
        losses = [
            {line["step"]: line["loss"] for line in read_metrics(path) if "loss" in line} for path in (left, right)
        ]
        return losses[0] == losses[1]
    return left.read_bytes() == right.read_bytes()


def _same_params(left: Path, right: Path, step: int) -> bool:
    model = Plamo2(checkpoint.read_model_config(left))
    params = [checkpoint.restore_params(run, abstract_params(model), step) for run in (left, right)]
    equal = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), *params)
    return all(jax.tree.leaves(equal))


def compare(left: Path, right: Path) -> tuple[int, list[str]]:
    """How many outputs two homes have between them, and which differ or are missing in one."""
    ours, theirs = outputs(left), outputs(right)
    names = sorted(ours.keys() | theirs.keys())
    differ = [name for name in names if not (name in ours and name in theirs and same(ours[name], theirs[name]))]
    return len(names), differ


def campaign(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """One pipeline that nobody touches, and one that is killed."""
    homes = {}
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        (folder / name / "configs").symlink_to(ROOT / "configs")
        homes[name] = folder / name / "runs" / "demo"
    begun = time.monotonic()
    finish(folder / "whole", SHORT)
    seconds = time.monotonic() - begun
    ends: list[dict] = []

    def on_end() -> None:
        count, differ = compare(homes["whole"], homes["killed"])
        ends.append({"outputs": count, "differ": differ})

    # A life makes about a tenth of it: what the first pipeline compiled need not be compiled again.
    longest = seconds / kills
    found = kill_at_random(folder / "killed", SHORT, kills, longest, random.Random(seed), on_end)
    finish(folder / "killed", SHORT)
    on_end()
    return {"seconds": round(seconds, 1), "longest_life": round(longest, 1), "kills": found, "ends": ends}


def main() -> None:
    """Run the campaign and write pipeline.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos_pipeline"), help="to work in; emptied first")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("pipeline.json"))
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Restarts compile the same programs: they share them.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    # There is far more to compile than to compute: no LLVM optimisation.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    results = campaign(folder, options.kills, options.seed)
    machine = {"python": platform.python_version(), "jax": jax.__version__, "cpus": os.cpu_count()}
    options.output.write_text(json.dumps({"machine": machine, "seed": options.seed, **results}, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    if any(end["differ"] for end in results["ends"]):
        sys.exit("the campaign found a difference")


if __name__ == "__main__":
    main()
