"""README and docs, kept true by running them: the demo's commands on a shortened training, then everything that follows on its result."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What makes the demo short enough for a test; the commands are otherwise those of the README.
SHORTER = {
    "tokenizer train": ["--sample-bytes", "600000"],
    "pretrain": ["--steps", "4", "--checkpoint-every", "2", "--evaluate-every", "4", "--model.hidden-size", "64"],
    "generate": ["--max-new-tokens", "8"],
}
# Checkpoints of the demo, and those that the shortened runs have.
STEPS = {"@60 ": "@2 ", "@120 ": "@4 "}


def shorter(line):
    """The options that shorten a command of the README."""
    _, verb, action, *_ = line.split()
    return SHORTER.get(verb) or SHORTER.get(f"{verb} {action}") or []


def commands(name, page=README):
    """The lines of the shell block that follows `<!-- name -->`."""
    block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", page, re.DOTALL).group(1)
    return block.strip().splitlines()


def plamo2(line, folder, options=()):
    """Run one `plamo2 ...` line in a folder as a user would, in a shell; returns what it printed."""
    for step, earlier in STEPS.items():
        line = line.replace(step, earlier)
    command, redirect, target = line.partition(" > ")
    # A user's machine has the devices it has, not those of the tests.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        " ".join([command, *options]) + redirect + target,
        cwd=folder,
        capture_output=True,
        text=True,
        shell=True,
        env=environment,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the demo has run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    for line in commands("demo"):
        plamo2(line, folder, shorter(line))
    return folder


def test_the_makefile_runs_the_commands_that_the_readme_shows():
    listed = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    prefix = ".venv/bin/"
    run = [line.removeprefix(prefix) for line in listed.splitlines() if line.startswith(f"{prefix}plamo2")]
    assert run == commands("demo")


def test_the_demo_leaves_a_report_with_both_languages(home):
    page = (home / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    for text in ("Japanese", "English", "xz -9e", "日本語の文書を", "To open the"):
        assert text in page
    assert page.count("<svg") == 4


def test_every_command_of_the_readme_works(home):
    for line in commands("use"):
        assert plamo2(line, home, shorter(line)) is not None
    assert (home / "exported" / "model.safetensors").exists()
    lines = (home / "clean-ja.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1000


def test_surgery_on_the_demo_works(home):
    for line in commands("demo", (ROOT / "docs" / "surgery.md").read_text(encoding="utf-8")):
        plamo2(line, home, [] if line.startswith("plamo2 generate") else shorter(line))
    assert (home / "phonebook" / "heat_map.png").exists()


def test_the_python_example_runs():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["logits"].shape == (1, 12, 4096)
    axes = scope["logical_axes"](scope["model"])["run_0"]["layer_0"]["mixer"]["in_proj"]
    assert axes == ("layers", None, "embed", "mamba_heads", "head_dim")


def test_the_map_names_what_exists():
    assert "NUMBERS" not in README
    for path in re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
