"""What pipeline.py and prefer.py share: a `plamo2` command that is killed by SIGKILL at chosen moments, and the script around it."""

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


@dataclasses.dataclass(frozen=True)
class Command:
    """`plamo2` with arguments, in a process of its own."""

    folder: Path
    """Where it works; made if it is not there."""
    argv: tuple[str, ...]
    compiled: Path
    """Where compiled programs are kept from one life to the next."""

    def start(self) -> subprocess.Popen:
        """A life; what it says goes to the folder's stderr.txt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            # There is far more to compile than to compute: no LLVM optimization.
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0"),
        }
        command = [sys.executable, "-m", "plamo2_jax.cli.main", *self.argv]
        with (self.folder / "stderr.txt").open("wb") as said:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=said)

    def said(self) -> str:
        """What the latest life said, of its progress bars too; each state of a bar is a line."""
        return (self.folder / "stderr.txt").read_bytes().decode(errors="replace").replace("\r", "\n")

    def finish(self) -> None:
        """Run to the end."""
        if status := self.start().wait():
            raise SystemExit(f"{self} ended with status {status}: {self.said()[-3000:]}")

    def kill(self, begun: Callable[[], bool], seconds: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Run until `begun`, and on for so many seconds or until `over`, and kill; False where it got to its end before."""
        process = self.start()
        while process.poll() is None and not begun():
            time.sleep(0.01)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end and not over():
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            if process.wait() == -signal.SIGKILL:
                return True
        # Only what we killed is a kill: a command that fails by itself must not pass for one.
        if process.returncode:
            raise SystemExit(f"{self} ended by itself with status {process.returncode}: {self.said()[-3000:]}")
        return False


def main(description: str, name: str, campaign: Callable[[Path, int, random.Random], dict]) -> None:
    """A campaign in an empty folder, with so many kills; NAME.json is written, and every end must be without a difference."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path(f"runs/chaos_{name}"), help="to work in; emptied first")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name(f"{name}.json"))
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    results = campaign(folder, options.kills, random.Random(options.seed))
    machine = {"python": platform.python_version(), "jax": jax.__version__, "cpus": os.cpu_count()}
    options.output.write_text(json.dumps({"machine": machine, "seed": options.seed, **results}, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    if any(end["differ"] for end in results["ends"]):
        sys.exit("the campaign found a difference")
