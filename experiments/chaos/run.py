"""Kill a run again and again at random times, damage its newest checkpoint in five ways, and compare with the run that nobody touched."""

from __future__ import annotations

import argparse
import dataclasses
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
from plamo2_jax.config_file import load_config
from plamo2_jax.model.plamo2 import Plamo2, abstract_params
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.metrics import METRICS, read_metrics

ROOT = Path(__file__).resolve().parents[2]
CONFIG_FILE = """from pathlib import *
from plamo2_jax.config import *
from plamo2_jax.data.pipeline import *
from plamo2_jax.train.config import *
from plamo2_jax.train.loss_guard import *
from plamo2_jax.train.optimizer import *
from plamo2_jax.train.pretraining import *
from plamo2_jax.train.schedule import *
config = {config!r}
"""


def start(config: RunConfig, folder: Path) -> subprocess.Popen:
    """`plamo2 pretrain` on a configuration, in a process of its own."""
    path = folder / f"{config.name}.py"
    path.write_text(CONFIG_FILE.format(config=config))
    command = [sys.executable, "-m", "plamo2_jax.cli.main", "pretrain", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(config: RunConfig, folder: Path) -> str:
    """Run to the end; returns what it wrote to stderr."""
    process = start(config, folder)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"{config.name} ended with status {process.returncode}: {error[-2000:]}")
    return error


def losses(config: RunConfig) -> dict[int, float]:
    """Loss by step."""
    return {line["step"]: line["loss"] for line in read_metrics(config.folder / METRICS) if "loss" in line}


def same_bits(left: RunConfig, right: RunConfig) -> bool:
    """Whether two complete runs have the same losses and final parameters."""
    params = [
        checkpoint.restore_params(config.folder, abstract_params(Plamo2(config.model)), config.steps)
        for config in (left, right)
    ]
    equal = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), *params)
    return losses(left) == losses(right) and all(jax.tree.leaves(equal))


def kill_at_random(
    config: RunConfig,
    folder: Path,
    kills: int,
    longest: float,
    rng: random.Random,
    on_end: Callable[[], None] = lambda: None,
) -> list[dict[str, float]]:
    """SIGKILL a run so many times, each at a time drawn from [0, longest] seconds after its start; says what each one cost.

    `on_end` is called when the run got to its end in between; it is then begun anew, so that each kill hits a run with work to do.
    """
    found = []
    while len(found) < kills:
        seconds = rng.uniform(0, longest)
        process = start(config, folder)
        killed = False
        try:
            _, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            killed = True
            _, error = process.communicate()
        if process.returncode == 0:
            on_end()
            shutil.rmtree(config.folder)
            continue
        # Only what we killed is a kill: a run that fails by itself must not pass for one.
        if not (killed and process.returncode == -signal.SIGKILL):
            raise SystemExit(f"{config.name} ended by itself with status {process.returncode}: {error[-3000:]}")
        made = max(losses(config), default=0)
        saved = checkpoint.latest_step(config.folder) or 0
        # A kill while a process starts leaves the lines of steps that it had not reached again: nothing more is lost by it.
        lost = max(0, made - saved)
        found.append({"seconds": round(seconds, 2), "steps_made": made, "newest_checkpoint": saved, "steps_lost": lost})
        print(f"kill {len(found)}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def _largest(step: Path) -> Path:
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(step: Path) -> None:
    """Cut the largest file in half."""
    path = _largest(step)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(step: Path) -> None:
    """Change one bit in the middle of the largest file."""
    path = _largest(step)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def delete_a_file(step: Path) -> None:
    """Remove the largest file."""
    _largest(step).unlink()


def empty(step: Path) -> None:
    """Leave the folder with nothing in it."""
    shutil.rmtree(step)
    step.mkdir()


def half_written(step: Path) -> None:
    """Leave it as a copying that stopped would: no manifest, and not all items."""
    (step / "manifest.json").unlink()
    shutil.rmtree(step / "training")


DAMAGES: tuple[Callable[[Path], None], ...] = (truncate, flip_a_byte, delete_a_file, empty, half_written)


def recover_from(damage: Callable[[Path], None], whole: RunConfig, folder: Path) -> dict[str, object]:
    """Damage the newest checkpoint of a copy of a complete run, and run the copy to the end again."""
    copy = dataclasses.replace(whole, output=folder / damage.__name__)
    shutil.copytree(whole.folder, copy.folder)
    damage(copy.folder / checkpoint.CHECKPOINTS / str(whole.steps))
    error = finish(copy, folder)
    named = [line for line in error.splitlines() if "is damaged: " in line]
    return {
        "damage": damage.__name__,
        "said": named[0].split("is damaged: ")[1].replace(f"{folder}/", "") if named else None,
        "set_aside": (copy.folder / checkpoint.CHECKPOINTS / f"{whole.steps}.damaged").is_dir(),
        "same_bits": same_bits(whole, copy),
    }


def campaign(config: RunConfig, folder: Path, kills: int, seed: int) -> dict[str, object]:
    """All of it.

    Args:
        config: the run; it is given two names.
        folder: an empty folder to work in.
        kills: how many SIGKILLs.
        seed: of their times.
    """
    folder = folder.resolve()
    whole = dataclasses.replace(config, name="whole", output=folder)
    began = time.time()
    finish(whole, folder)
    lines = [line["time"] for line in read_metrics(whole.folder / METRICS)]
    first, last = lines[0] - began, lines[-1] - lines[0]
    killed = dataclasses.replace(whole, name="killed")
    # A life is long enough to start and to make a tenth of the steps on average, so that kills fall into all that a run does.
    longest = first + 0.2 * last
    equal: list[bool] = []

    def compare() -> None:
        equal.append(same_bits(whole, killed))

    costs = kill_at_random(killed, folder, kills, longest, random.Random(seed), compare)
    finish(killed, folder)
    compare()
    return {
        "steps": config.steps,
        "checkpoint_every": config.checkpoint_every,
        "seconds_to_first_step": round(first, 2),
        "seconds_a_step": round(last / (config.steps - 1), 4),
        "kills": costs,
        "most_steps_lost": max(cost["steps_lost"] for cost in costs),
        "kills_that_cost_more_than_an_interval": sum(cost["steps_lost"] > config.checkpoint_every for cost in costs),
        "steps_lost_beyond_an_interval": sum(max(0, cost["steps_lost"] - config.checkpoint_every) for cost in costs),
        "runs_ended": len(equal),
        "killed_same_bits": all(equal),
        "damages": [recover_from(damage, whole, folder) for damage in DAMAGES],
    }


def small_demo(folder: Path) -> RunConfig:
    """The demo's run, half as wide and shorter, on the bundled held-out English text."""
    plamo2 = [sys.executable, "-m", "plamo2_jax.cli.main"]
    tokenizer = [
        "tokenizer",
        "train",
        "--input",
        "bundled:en:train",
        "--vocab-size",
        "1024",
        "--sample-bytes",
        "300000",
    ]
    shards = ["data", "prepare", "--input", "bundled:en:heldout", "--tokenizer", str(folder)]
    for command in ([*tokenizer, "--output", str(folder)], [*shards, "--output", str(folder / "shards")]):
        subprocess.run(plamo2 + command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    demo = load_config(ROOT / "configs" / "demo.py")
    fields = {name: getattr(demo.model, name) for name in demo.model.__dataclass_fields__}
    model = type(demo.model)(**(fields | {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 1024}))
    item = dataclasses.replace(demo.data.mixture[0], path=folder / "shards", weight=1.0)
    return dataclasses.replace(
        demo,
        model=model,
        tokenizer=folder / "tokenizer.jsonl",
        data=dataclasses.replace(demo.data, mixture=(item,)),
        heldout={},
        steps=160,
        checkpoint_every=20,
        log_every=1,
    )


def main() -> None:
    """Run the campaign and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"), help="to work in; it is emptied first")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    # Restarts compile the same program: they share it.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(options.folder.resolve() / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    results = campaign(small_demo(options.folder.resolve()), options.folder, options.kills, options.seed)
    machine = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    options.output.write_text(json.dumps({"machine": machine, "seed": options.seed, **results}, indent=2) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "kills"}, indent=2))
    recovered = all(damage["same_bits"] and damage["said"] for damage in results["damages"])
    if not (recovered and results["killed_same_bits"] and not results["steps_lost_beyond_an_interval"]):
        sys.exit("the campaign found a loss")


if __name__ == "__main__":
    main()
