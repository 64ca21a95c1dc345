"""Errors for users are one line and status 2; defects keep their traceback."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import plamo2_jax
from plamo2_jax.cli.main import main
from plamo2_jax.errors import PlamoError

ROOT = Path(plamo2_jax.__file__).parent
# Messages between the processes of the sandbox, and mistakes that only a developer can make.
DEFECTS = {"sandbox/channel.py", "sandbox/verdict.py", "model/axes.py"}


def test_a_users_error_is_one_line(capsys, tmp_path):
    assert main(["evaluate", str(tmp_path / "missing"), "--heldout", "ja"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("plamo2 evaluate: ")
    assert said.count("\n") == 1


DEFECT = """
import sys, types
import jax.numpy as jnp
from plamo2_jax.cli.main import main

def broken(argv):
    return jnp.ones((2, 3)) @ jnp.ones((2, 3))

sys.modules["plamo2_jax.cli.report"] = types.SimpleNamespace(main=broken)
sys.exit(main(["report"]))
"""


def test_a_bug_within_jax_shows_its_traceback():
    done = subprocess.run([sys.executable, "-c", DEFECT], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "in broken" in done.stderr
    assert "dot_general" in done.stderr


def raised(path):
    """Names of the exception classes that a module raises."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            yield node.exc.func.id


def public_errors():
    """Error classes that are defined anywhere, with their bases, by name."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "").endswith("Error") for base in node.bases):
                yield node.name, {base.id for base in node.bases}


def test_errors_for_users_share_one_base():
    # Files that an export copies run without this package.
    files = [path for path in ROOT.rglob("*.py") if path.parent.name != "torch_files"]
    plain = [path for path in files if "ValueError" in set(raised(path))]
    assert {str(path.relative_to(ROOT)) for path in plain} <= DEFECTS
    classes = dict(public_errors())
    assert len(classes) > 10
    assert {name for name, bases in classes.items() if "ValueError" in bases} == {"PlamoError"}
    assert issubclass(PlamoError, ValueError)
