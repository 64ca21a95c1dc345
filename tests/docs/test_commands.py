"""Every `plamo2` command in README.md and docs/ is one that the command line accepts: its verb, its options and their values.

Nothing runs: the test ends each command when its options have been read. Other tests run the commands of the demo and of the tutorials.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from plamo2_jax.cli import arguments
from plamo2_jax.cli.main import COMMANDS, module_of
from plamo2_jax.config import preset
from support.documents import ROOT, plamo2_commands

# Options of the command line itself, and placeholders.
NOT_COMMANDS = {"--help", "-h", "--version", "-V", "--no-cache", "COMMAND"}
# For a config that the reader writes: one of the same task.
STAND_INS = {"sft": "demo_sft.py", "dpo": "demo_dpo.py", "distill": "demo_small.py", "student.py": "demo_small.py"}


class Accepted(Exception):
    """The options were read."""


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """End each command when its options have been read."""
    original = arguments.tyro.cli

    def cli(*args, **kwargs):
        value, unknown = original(*args, **kwargs)
        if unknown:
            return value, unknown
        raise Accepted

    monkeypatch.setattr(arguments.tyro, "cli", cli)
    monkeypatch.chdir(tmp_path)
    # Some configs read the shape of their model from a run.
    shape = json.dumps({"model": dataclasses.asdict(preset("tiny"))})
    for name in ("demo", "sft"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.json").write_text(shape, encoding="utf-8")


def config_of(verb, word):
    """Return the path of a config in this repository for the word of a command."""
    path = ROOT / word
    return str(path if path.exists() else ROOT / "configs" / STAND_INS.get(path.name, STAND_INS.get(verb, "demo.py")))


def test_every_command_is_accepted(read_only, capsys):
    refused, seen = [], set()
    for page, words in plamo2_commands():
        if (
            words[0] in NOT_COMMANDS
            or "--help" in words
            or "COMMAND" in words
            or "..." in words
            or tuple(words) in seen
        ):
            continue
        seen.add(tuple(words))
        verb, *rest = words
        rest = [config_of(verb, word) if word.endswith(".py") else word for word in rest]
        try:
            importlib.import_module(f"plamo2_jax.cli.{module_of(verb)}").main(rest)
            refused.append((page, words, "ran"))
        except Accepted:
            pass
        except (SystemExit, Exception) as error:
            refused.append((page, " ".join(words), f"{type(error).__name__}: {error}", capsys.readouterr().err[-300:]))
    assert len(seen) > 100
    assert not refused, "\n".join(map(str, refused))
    assert {words[0] for words in seen} >= COMMANDS.keys() - {"logits"}
