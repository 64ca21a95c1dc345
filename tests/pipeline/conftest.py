"""Fixtures that run pipelines in a folder of their own."""

import contextlib
import shutil

import pytest

from plamo2_jax.cli.main import main
from support.pipelines import OUTPUTS, STAGES, write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(folder):
    """Return a working directory with p.py of the four stages."""
    write(STAGES, OUTPUTS)
    return folder


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory):
    """Return a folder with p.py, whose four stages have run."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        write(STAGES, OUTPUTS)
        assert main(["pipeline", "p.py"]) == 0
    return folder


@pytest.fixture
def finished(finished_pipeline, folder):
    """Return a working directory with p.py, whose four stages have run."""
    shutil.copytree(finished_pipeline, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def run(capsys):
    """Return a function that runs p.py, which must succeed, and returns the stages that ran and why."""

    def run(*options: str) -> dict[str, str]:
        capsys.readouterr()
        assert main(["pipeline", "p.py", *options]) == 0
        heads = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("[") and "done in" not in line
        ]
        return dict(line.split("] ", 1)[1].split(": ", 1) for line in heads)

    return run


@pytest.fixture
def plan(capsys):
    """Return a function that plans p.py and returns stage → verdict."""

    def plan(*options: str) -> dict[str, str]:
        capsys.readouterr()
        assert main(["pipeline", "p.py", "--dry-run", *options]) == 0
        heads = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("   ")]
        return dict(line.strip().split(" ", 1)[1].split(": ", 1) for line in heads)

    return plan


@pytest.fixture
def refused(capsys):
    """Return a function that runs p.py, which must be refused, and returns the line on stderr."""

    def refused(*options: str) -> str:
        capsys.readouterr()
        assert main(["pipeline", "p.py", *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return refused
