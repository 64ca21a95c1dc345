"""README and docs, kept true by running them: the demo's commands on a shortened training, then everything that follows on its result."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.xla import xla_flags

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHORT_DEMO = ROOT / "experiments" / "chaos" / "short_demo.py"
"""The demo's pipeline with options that make it short enough for a test."""
# Checkpoints of the demo, and those that its shortened runs have.
STEPS = {"@60 ": "@2 ", "@120 ": "@4 "}


def shorter(line):
    """Options that shorten a command."""
    return ["--max-new-tokens", "8"] if line.startswith("plamo2 generate") else []


def commands(name, page=README):
    """The lines of the shell block that follows `<!-- name -->`."""
    block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", page, re.DOTALL).group(1)
    return block.strip().splitlines()


def environment():
    """Return the environment of commands. A user's machine has the devices it has, not those of the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"XLA_FLAGS": xla_flags(), "PATH": path}


def earlier(line):
    """Return a command with the checkpoints of the shortened runs."""
    for step, checkpoint in STEPS.items():
        line = line.replace(step, checkpoint)
    return line


def plamo2(line, folder):
    """Run one `plamo2 ...` line in a folder as a user would, in a shell; return its standard output."""
    done = subprocess.run(earlier(line), cwd=folder, capture_output=True, text=True, shell=True, env=environment())
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


ONE_AFTER_ANOTHER = """
import shlex, sys
from plamo2_jax.cli.main import main
for line in sys.argv[1:]:
    command, *words = shlex.split(line, comments=True)
    assert command == "plamo2", line
    if main(words):
        sys.exit(line)
"""


def run_all(lines, folder):
    """Run `plamo2 ...` lines in a folder, in one process: the start of a process takes as long as most of these commands."""
    words = [" ".join([earlier(line), *shorter(line)]) for line in lines]
    assert len(words) > 2
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, *words], cwd=folder, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the demo has run, planned first."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    plan, run = (line.partition("  #")[0] for line in commands("demo"))
    listed = plamo2(plan, folder)
    assert listed.count("to run (") == len(re.findall(r"^ ?\d+ ", listed, re.MULTILINE)) > 20
    assert not (folder / "runs").exists()
    plamo2(run.replace("configs/pipeline_demo.py", str(SHORT_DEMO)), folder)
    return folder


def test_the_makefile_runs_what_the_readme_shows():
    # `make test PYTHON=...` would hand its own Python, and so another environment, to this make.
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKEOVERRIDES")}
    listed = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    ).stdout
    run = [line.removeprefix(".venv/bin/") for line in listed.splitlines() if line.startswith(".venv/bin/plamo2")]
    assert run == commands("demo")[1:]


def test_the_demo_leaves_a_report_with_both_languages(home):
    page = (home / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    for text in ("Japanese", "English", "xz -9e", "日本語の文書を", "To open the"):
        assert text in page
    assert page.count("<svg") > 4
    for name in ("small", "long", "sft_1", "dpo_2"):
        assert f"<h3>{name}</h3>" in page
    assert "reward accuracy" in page
    assert "Synthetic data: synth" in page
    card = re.search(r'<a href="([^"]+)">data card</a>', page).group(1)
    assert "word_problems_ja" in (home / "runs" / "demo" / card).read_text(encoding="utf-8")
    assert "Scores of the models" in page
    for name in ("pretrained", "merged", "sft", "tuned"):
        assert f"<tr><td>{name}</td>" in page
        assert (home / "runs" / "demo" / "scores" / name / "rules" / "result.json").exists()


def test_the_demo_ends_in_a_tuned_model_and_scores_of_it(home):
    demo = home / "runs" / "demo"
    assert (demo / "tuned" / "model.safetensors").exists()
    for model in ("sft", "tuned"):
        scores = json.loads((demo / "scores" / model / "rules" / "result.json").read_text(encoding="utf-8"))
        assert scores["n"] == 4
        assert not scores["failed"]


def test_every_command_of_the_readme_works(home):
    run_all(commands("use"), home)
    assert (home / "exported" / "model.safetensors").exists()
    lines = (home / "clean-ja.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1000


def test_surgery_on_the_demo_works(home):
    run_all(commands("demo", (ROOT / "docs" / "surgery.md").read_text(encoding="utf-8")), home)
    assert (home / "phonebook" / "heat_map.png").exists()


def test_evaluation_of_the_demo_works(home):
    run_all(commands("demo", (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")), home)
    assert (home / "runs" / "evaluation" / "demo" / "report.html").exists()


def test_quantization_of_the_demo_works(home):
    run_all(commands("demo", (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")), home)
    assert (home / "four" / "quantized" / "weights.safetensors").exists()


def test_the_python_example_runs():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["logits"].shape == (1, 12, 4096)
    axes = scope["logical_axes"](scope["model"])["run_0"]["layer_0"]["mixer"]["in_proj"]
    assert axes == ("layers", None, "embed", "mamba_heads", "head_dim")


def test_the_docs_link_to_what_exists():
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_map_names_what_exists():
    assert "NUMBERS" not in README
    for path in re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
