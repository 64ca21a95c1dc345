"""Record what a source tree computes, to show that a change of structure leaves every number as it was.

    python experiments/fingerprints/run.py before.json --tree OLD_CLONE --plamo2 OLD_CLONE/.venv/bin/plamo2
    python experiments/fingerprints/run.py after.json
    diff before.json after.json

It runs the short demo pipeline, 20 steps of the demo at full width (once in one go, once stopped and resumed), the golden checkpoints,
and greedy generation. The JSON holds losses as hexadecimal floats and SHA-256 digests of logits, token ids and texts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = {name: ROOT / "tests/golden" / name for name in ("window", "full")}
CASES = ("single", "packed", "left_padded", "packed_right_padded")
STEPS = 20
PROMPTS = [f"{word} {number}" for number in range(10) for word in ("日本語の文書", "To open the file")]


def main() -> None:
    """Run everything and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--tree", type=Path, default=ROOT, help="source tree to run; default: this one")
    parser.add_argument("--plamo2", default="plamo2", help="the command of that tree; default: plamo2")
    parser.add_argument("--folder", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "configs").exists():
            (folder / "configs").symlink_to(options.tree.resolve() / "configs")
        found = record(Runner(options.plamo2, folder), options.tree.resolve())
    options.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


class Runner:
    """Runs `plamo2` in a folder."""

    def __init__(self, plamo2: str, folder: Path):
        self._plamo2, self.folder = plamo2, folder

    def run(self, *arguments: object) -> str:
        """Return what the command prints; its progress goes to this process's stderr."""
        print("plamo2", *arguments, file=sys.stderr, flush=True)
        words = [self._plamo2, *map(str, arguments)]
        return subprocess.run(words, cwd=self.folder, check=True, stdout=subprocess.PIPE, text=True).stdout

    def interrupt(self, metrics: Path, step: int, *arguments: object) -> None:
        """Start a training command and send SIGTERM once its log holds this step."""
        process = subprocess.Popen([self._plamo2, *map(str, arguments)], cwd=self.folder, stdout=subprocess.DEVNULL)
        while process.poll() is None and max(losses(metrics), default=0) < step:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait()


def record(runner: Runner, tree: Path) -> dict[str, object]:
    """Compute every fingerprint."""
    found: dict[str, object] = {}
    runner.run("pipeline", tree / "experiments/chaos/short_demo.py")
    home = runner.folder / "runs/demo"
    for path in sorted(home.rglob("metrics.jsonl")):
        found[f"losses of {path.parent.relative_to(home)}"] = hexadecimal(losses(path))
        found[f"held-out figures of {path.parent.relative_to(home)}"] = heldout(path)
    for pattern in ("*evaluation.json", "samples.jsonl", "*_answers/answers.jsonl", "preferences/*.jsonl"):
        for path in sorted(home.glob(pattern)):
            found[f"{path.relative_to(home)}"] = digest(path.read_bytes())

    twenty = (
        "configs/demo.py",
        "--steps",
        STEPS,
        "--checkpoint-every",
        10,
        "--log-every",
        1,
        "--evaluate-every",
        STEPS,
    )
    runner.run("pretrain", *twenty, "--output", "whole")
    stopped = ("pretrain", *twenty, "--output", "stopped")
    runner.interrupt(runner.folder / "stopped/demo/metrics.jsonl", 8, *stopped)
    runner.run(*stopped)
    for name in ("whole", "stopped"):
        found[f"losses of {STEPS} steps, {name}"] = hexadecimal(losses(runner.folder / name / "demo/metrics.jsonl"))

    for name, checkpoint in GOLDEN.items():
        with np.load(checkpoint / "cases.npz", allow_pickle=False) as cases:
            arrays = {key: np.stack([cases[f"{case}.{key}"] for case in CASES]) for key in ("tokens", "segment_ids")}
        np.savez(runner.folder / f"{name}.npz", **arrays)
        output = runner.folder / f"{name}_logits.npz"
        runner.run("logits", checkpoint, "--input", f"{name}.npz", "--output", output)
        with np.load(output) as written:
            found[f"golden logits, {name}"] = digest(written["logits"].tobytes())

    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    # A model of 4 steps is close to a random one, whose greedy continuations still differ from prompt to prompt.
    for model in ("runs/demo", "whole/demo"):
        for name, sampling in (("greedy", ("--temperature", 0)), ("sampled", ("--top-p", 0.9, "--top-k", 50))):
            text = runner.run("generate", model, *prompts, *sampling, "--max-new-tokens", 32, "--json")
            tokens = [json.dumps(json.loads(line)["token_ids"]) for line in text.splitlines()]
            found[f"{name} tokens of {model}"] = [digest(line.encode())[:16] for line in tokens]
    return found


def lines(path: Path) -> list[dict]:
    """Return the complete lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(path: Path) -> dict[int, float]:
    """Return the loss of each step that a log holds."""
    return {line["step"]: line["loss"] for line in lines(path) if "loss" in line} if path.exists() else {}


def hexadecimal(values: dict[int, float]) -> list[str]:
    """Return the values in order of their steps, exactly."""
    return [float(values[step]).hex() for step in sorted(values)]


def heldout(path: Path) -> dict[str, str]:
    """Return the last held-out figures of a log, exactly."""
    found = {}
    for line in lines(path):
        found |= {name: float(value).hex() for name, value in line.items() if name.startswith("heldout")}
    return found


def digest(data: bytes) -> str:
    """Return the SHA-256 digest."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
