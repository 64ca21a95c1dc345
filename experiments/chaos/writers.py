"""Two writers of one folder, kills in the middle of writing, and full disks: `make chaos`.

Every command is a process, as users start it. After each round the folder OUT, if it exists, must open as a whole model with the
parameters of its source; a command that reported success must have made it; a full disk must leave nothing.

usage: python experiments/chaos/writers.py [--rounds 20] [--seed 0] [--output experiments/chaos/writers.json]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.convert.hf import write_public
from plamo2_jax.convert.load import load_model
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer

CONFIG = preset("tiny", hidden_size=256, intermediate_size=512, num_hidden_layers=4, mamba_num_heads=8, vocab_size=864)
DISK_SIZES = ("1m", "4m", "7m")
"""Smaller than the model of 10 MB."""


def commands(source: Path) -> dict[str, list[str]]:
    """A command that writes a model, by verb; OUT is the last argument."""
    public, run = str(source / "public"), str(source / "run")
    return {
        "convert from-hf": ["convert", "from-hf", public],
        "convert to-hf": ["convert", "to-hf", run],
        "merge": ["merge", public, public],
    }


def larger_commands(source: Path) -> dict[str, list[str]]:
    """Further commands that write more than the smallest disks hold; OUT is the last argument."""
    public, run = str(source / "public"), str(source / "run")
    return {
        **commands(source),
        "grow": ["grow", "--set", "num_hidden_layers=8", "--", public, public],
        "extend": ["extend", "--full-attention", "all", "--", run],
    }


def main() -> int:
    """Run all rounds; the exit status is 1 where one broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="rounds of two writers (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--output", type=Path, help="JSON file of what was found")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = Path(temporary)
        params = _write_source(folder)
        rounds = [_two_writers(folder, params, rng) for _ in range(options.rounds)]
        disks = _full_disks(folder)
    broken = [each for each in (*rounds, *disks) if each["broken"]]
    about = {"command": " ".join(sys.argv), "rounds": rounds, "full_disks": disks, "broken": len(broken)}
    print(f"{len(rounds)} rounds of two writers, {len(disks)} full disks, {len(broken)} broken promises")
    if options.output:
        options.output.write_text(json.dumps(about, indent=1).replace(str(folder), "FOLDER") + "\n")
    return int(bool(broken))


def _write_source(folder: Path) -> list[np.ndarray]:
    params = jax.jit(lambda key: init_params(Plamo2(CONFIG), key))(jax.random.key(0))
    tokenizer = Tokenizer.load(Path(__file__).parents[2] / "tests" / "golden" / "tokenizer")
    write_public(folder / "public", CONFIG, params, tokenizer)
    checkpoint.save_model(folder / "run", CONFIG, params, tokenizer)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def _two_writers(folder: Path, params: list[np.ndarray], rng: random.Random) -> dict:
    """Start one command twice, kill one of the two half of the time, and look at OUT."""
    verb, arguments = rng.choice(sorted(commands(folder).items()))
    out = folder / "work" / "OUT"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    writers = [_start(arguments, out)]
    time.sleep(rng.uniform(0, 1))
    writers.append(_start(arguments, out))
    killed = None
    if rng.random() < 0.5:
        killed = rng.randrange(2)
        time.sleep(rng.uniform(0, 8))
        writers[killed].kill()
    ended = [(writer.wait(), writer.stderr.read().decode().strip().splitlines()[-1:]) for writer in writers]
    broken = []
    reported = [status for status, _ in ended].count(0)
    # A writer that was killed may have made OUT in its last moment; OUT is compared below in any case.
    if out.exists() != (reported > 0) and not (out.exists() and killed is not None):
        broken.append(f"{reported} writers reported success; OUT exists: {out.exists()}")
    if out.exists():
        broken.extend(_differences(out, params))
    for status, message in ended:
        if status == 2 and not ("being written by another process" in message[0] or "already exists" in message[0]):
            broken.append(message[0])
    # The next start removes what a kill left.
    if not out.exists():
        again = _start(arguments, out)
        if again.wait() != 0:
            broken.append(f"a further start failed: {again.stderr.read().decode()[-300:]}")
    # What a killed writer left beside an OUT of the other one stays until the next start of a writer of OUT.
    left = [path.name for path in out.parent.iterdir() if path != out]
    if left and (killed is None or reported == 0):
        broken.append(f"left behind: {left}")
    return {"verb": verb, "killed": killed, "ended": ended, "broken": broken}


def _full_disks(folder: Path) -> list[dict]:
    """Write to file systems that are too small; needs the right to mount, and is left out without it."""
    found = []
    disk = folder / "disk"
    disk.mkdir()
    for size in DISK_SIZES:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False)
        if mounted.returncode != 0:
            print("full disks are left out: mounting a file system is not allowed here", file=sys.stderr)
            return found
        try:
            for verb, arguments in larger_commands(folder).items():
                process = _start(arguments, disk / "OUT")
                status, lines = process.wait(), process.stderr.read().decode().strip().splitlines()
                broken = []
                sentence = lines[-1] if lines else ""
                stacks = any(word in line for line in lines for word in ("Traceback", "Error:"))
                if status != 2 or stacks or "the disk is full" not in sentence or str(disk) not in sentence:
                    broken.append(f"status {status}: {lines[-3:]}")
                if left := [path.name for path in disk.iterdir()]:
                    broken.append(f"left behind: {left}")
                found.append({"verb": verb, "size": size, "broken": broken})
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return found


def _start(arguments: list[str], out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "plamo2_jax.cli.main", *arguments, str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _differences(out: Path, params: list[np.ndarray]) -> list[str]:
    try:
        loaded = load_model(out)
    except ValueError as error:
        return [f"OUT does not open: {error}"]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(loaded.params)]
    same = len(leaves) == len(params) and all(map(np.array_equal, leaves, params))
    return [] if same else ["OUT holds other parameters"]


if __name__ == "__main__":
    sys.exit(main())
