"""A small checkout to launch from, and what a launch prints or says."""

import subprocess
from pathlib import Path

import pytest

from plamo2_jax.cli.main import main

CONFIG = Path(__file__).parents[2] / "configs" / "demo.py"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with a config file in it, which is the working directory; gcloud's settings of this machine do not count."""
    folder = tmp_path / "check out"  # A space, which has to be quoted wherever the path goes.
    (folder / "configs").mkdir(parents=True)
    # Enough rows for every slice.
    text = CONFIG.read_text(encoding="utf-8").replace("batch_size=2,", "batch_size=24576,")
    (folder / "configs" / "demo.py").write_text(text, encoding="utf-8")
    (folder / "setup.cfg").write_text("[metadata]\nname = stand-in\n", encoding="utf-8")
    (folder / ".gitignore").write_text("runs/\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run(["git", "-C", folder, "add", "--all"], check=True)
    monkeypatch.chdir(folder)
    for name in ("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    return folder


@pytest.fixture
def printed(checkout, capsys):
    """What `plamo2 launch ... --dry-run` prints; nothing may be wrong."""

    def run(place, *arguments, overrides=("--output", "gs://bucket/runs")):
        assert main(["launch", place, "configs/demo.py", *arguments, "--dry-run", "--", *overrides]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


@pytest.fixture
def refused(checkout, capsys):
    """The one line on stderr of a launch that is refused."""

    def run(place, *arguments, overrides=()):
        assert main(["launch", place, "configs/demo.py", *arguments, "--", *overrides]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return run
