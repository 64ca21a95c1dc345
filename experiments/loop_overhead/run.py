"""What the training loop costs beside its step: data, metrics, log, watchdog and checkpoints, in turns with the bare compiled step."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax

from plamo2_jax.config_file import load_config
from plamo2_jax.data.pipeline import train_iterator
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train import loop
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
_PLAMO2 = [sys.executable, "-m", "plamo2_jax.cli.main"]


def demo(path: Path, folder: Path, steps: int, checkpoint_every: int) -> RunConfig:
    """The demo's configuration, or another one, on the bundled held-out text, which is prepared in seconds; without evaluation."""
    tokenizer = [
        "tokenizer",
        "train",
        "--input",
        "bundled:all:train",
        "--vocab-size",
        "4096",
        "--sample-bytes",
        "1000000",
    ]
    commands = [[*tokenizer, "--output", str(folder)]]
    for language in ("ja", "en"):
        prepare = ["data", "prepare", "--input", f"bundled:{language}:heldout", "--tokenizer", str(folder)]
        commands.append([*prepare, "--output", str(folder / language)])
    for command in commands:
        subprocess.run(_PLAMO2 + command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    config = load_config(path)
    mixture = tuple(
        dataclasses.replace(item, path=folder / language)
        for item, language in zip(config.data.mixture, ("ja", "en"), strict=True)
    )
    return dataclasses.replace(
        config,
        tokenizer=folder,
        output=folder,
        data=dataclasses.replace(config.data, mixture=mixture),
        heldout={},
        steps=steps,
        checkpoint_every=checkpoint_every,
    )


class Turns:
    """Lets the loop, in its thread, make some steps at a time. The step under way when a turn ends is counted in no turn."""

    def __init__(self, config: RunConfig, block: int):
        self._block = block
        self._go, self._arrived = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=loop.train, args=(config,), kwargs={"on_step": self._on_step})

    def start(self) -> None:
        """Begin, and wait for the first turn's end."""
        self._thread.start()
        self._arrived.wait()

    def take(self) -> None:
        """One turn."""
        self._arrived.clear()
        self._go.set()
        self._arrived.wait()

    def end(self) -> None:
        """Let it run to its last step."""
        self._block = sys.maxsize
        self._go.set()
        self._thread.join()

    def _on_step(self, step: int) -> None:
        if step % self._block == 0:
            self._arrived.set()
            self._go.wait()
            self._go.clear()


class Bare:
    """The same step, compiled the same way, on one batch again and again, with as many steps in flight as in the loop."""

    def __init__(self, config: RunConfig):
        tokenizer = Tokenizer.load(config.tokenizer)
        program = build_train_program(config, jax.devices(), tokenizer)
        self._state, self._frozen = program.create_state(), program.task.frozen
        self._batch = program.put(next(train_iterator(config.data, tokenizer)))
        self._step = program.jit().lower(*program.arguments).compile()

    def take(self, steps: int) -> jax.Array:
        """Some steps, the last of which is still under way."""
        done = None
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch, self._frozen)
            if done is not None:
                jax.block_until_ready(done)
            done = metrics["loss"]
        return done


def overhead(rounds: list[dict[str, float]], suffix: str, steps: int, every: int) -> dict[str, object]:
    """What the loop adds, in seconds a step and as a share of the bare step's.

    Args:
        rounds: the figures of each turn.
        suffix: of their names: which clock.
        steps: counted in a turn.
        every: steps between the checkpoints of the run that the share is stated for.
    """
    bare = statistics.median(figures["bare" + suffix] for figures in rounds)
    added = {
        saves: [figures["loop" + suffix] - figures["bare" + suffix] for figures in rounds if figures["saves"] == saves]
        for saves in (False, True)
    }
    plain = statistics.median(added[False])
    # A save's writing goes on behind the steps after it, and is over within the turn that it begins in.
    save = steps * (statistics.median(added[True]) - plain) if added[True] else math.nan
    return {
        "bare_step": bare,
        "added_without_a_save": plain,
        "quartiles": [statistics.quantiles(added[False], n=4)[index] for index in (0, 2)],
        "added_by_a_save": save,
        "share_without_saves": plain / bare,
        "share_with_the_demos_saves": (plain + save / every) / bare,
    }


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/loop_overhead"), help="to work in; it is emptied first"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "configs" / "demo.py",
        help="training to measure; experiments/demo_gpu.py has 62 million parameters (default: the demo)",
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block", type=int, default=10, help="steps a turn")
    parser.add_argument("--checkpoint-every", type=int, default=50, help="steps; the demo's is 350")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    demo_every = load_config(options.config).checkpoint_every
    config = demo(
        options.config, options.folder.resolve(), options.block * (options.rounds + 3), options.checkpoint_every
    )

    turns = Turns(config, options.block)
    turns.start()
    bare = Bare(config)
    jax.block_until_ready(bare.take(options.block))
    turns.take()
    rounds = []
    for done in range(2, options.rounds + 2):
        time.sleep(0.2)
        # A turn ends before its last step is saved.
        figures = {"saves": done * options.block % config.checkpoint_every == 0}
        for name, take in (("bare", lambda: bare.take(options.block)), ("loop", turns.take)):
            wall, cpu = time.perf_counter(), time.process_time()
            last = take()
            # One step of each turn was under way at its end, and is waited for outside of it.
            figures[name] = (time.perf_counter() - wall) / (options.block - 1)
            figures[f"{name}_cpu"] = (time.process_time() - cpu) / (options.block - 1)
            jax.block_until_ready(last)
            time.sleep(2 * figures[name])
        rounds.append(figures)
    turns.end()

    results = {
        "machine": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "cpus": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "rounds": options.rounds,
        "steps_a_turn": options.block,
        "checkpoint_every": options.checkpoint_every,
        "wall": overhead(rounds, "", options.block - 1, demo_every),
        "cpu": overhead(rounds, "_cpu", options.block - 1, demo_every),
        "turns": rounds,
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "turns"}, indent=2))


if __name__ == "__main__":
    main()
