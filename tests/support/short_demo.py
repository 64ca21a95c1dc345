"""The demo of `make demo`, shortened, and the commands of pages that work on its result."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.documents import ROOT, block, lines_of
from support.xla import xla_flags

DEMO = ROOT / "docs" / "demo.md"
"""The page with the commands of the demo."""
SHORT_DEMO = ROOT / "experiments" / "chaos" / "short_demo.py"
"""The demo's pipeline with options that make it short enough for a test."""
# Checkpoints of the demo, and those that its shortened runs have.
_STEPS = {"@60 ": "@2 ", "@120 ": "@4 "}
_SMALLER_RUN = "--steps 4 --checkpoint-every 2 --evaluate-every 4 --data.batch-size 2"
_SHORTER = {
    "generate": "--max-new-tokens 8",
    "sft": f"{_SMALLER_RUN} --samples.max-new-tokens 4",
    "dpo": _SMALLER_RUN,
    "preference-data": "--samples 3 --stop.max-new-tokens 8 --pairing.margin 0.001 --heldout-share 0.3",
}


def commands(name: str, page: Path) -> list[str]:
    """Return the commands in the block that follows `<!-- name -->`."""
    return lines_of(block(name, page))


def environment() -> dict[str, str]:
    """Return the environment of commands. A user's machine has the devices it has, not those of the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"XLA_FLAGS": xla_flags(), "PATH": path}


def shorter(line: str) -> str:
    """Return a command that is like one of a page, on the result of the shortened demo, with options that shorten it."""
    for step, checkpoint in _STEPS.items():
        line = line.replace(step, checkpoint)
    verb = line.split()[1]
    if verb == "pretrain" and "demo_small.py" in line:
        return f"{line} --model.hidden-size 64 {_SMALLER_RUN}"
    return f"{line} {_SHORTER.get(verb, '')}".rstrip()


def run(line: str, folder: Path) -> str:
    """Run one line in a folder as a user would, in a shell; return its standard output."""
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, shell=True, env=environment())
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


_ONE_AFTER_ANOTHER = """
import shlex, sys
from plamo2_jax.cli.main import main
for line in sys.argv[1:]:
    command, *words = shlex.split(line, comments=True)
    assert command == "plamo2", line
    if main(words):
        sys.exit(line)
"""


def run_all(lines: list[str], folder: Path) -> str:
    """Run `plamo2 ...` lines in a folder, in one process: the start of a process takes as long as most of these commands.

    Returns:
        The standard output of all.
    """
    assert len(lines) > 2
    words = [shorter(line.partition("  #")[0]) for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", _ONE_AFTER_ANOTHER, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def run_demo(folder: Path) -> Path:
    """Plan the demo in a folder, then run it, shortened; return the folder."""
    (folder / "configs").symlink_to(ROOT / "configs")
    plan, line = (line.partition("  #")[0] for line in commands("demo", DEMO))
    listed = run(plan, folder)
    assert listed.count("to run (") == len(re.findall(r"^ ?\d+ ", listed, re.MULTILINE)) > 20
    assert not (folder / "runs").exists()
    run(line.replace("configs/pipeline_demo.py", str(SHORT_DEMO)), folder)
    return folder
