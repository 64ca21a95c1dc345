"""README and docs, kept true by running them: the demo's commands on a shortened training, then everything that follows on its result."""

import json
import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml

import plamo2_jax
from support.short_demo import DEMO, commands, run_all, run_demo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the demo has run, planned first."""
    return run_demo(tmp_path_factory.mktemp("readme"))


def test_the_makefile_runs_what_the_page_of_the_demo_shows():
    # `make test PYTHON=...` would hand its own Python, and so another environment, to this make.
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKEOVERRIDES")}
    listed = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    ).stdout
    run = [line.removeprefix(".venv/bin/") for line in listed.splitlines() if line.startswith(".venv/bin/plamo2")]
    assert run == commands("demo", DEMO)[1:]


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
    assert "<h2>Models</h2>" in page
    assert "Models side by side" in page
    for name, shown in {"pretrained": "pretrained (demo)", "merged": "merged", "sft": "sft", "tuned": "tuned"}.items():
        assert f"<tr><td>{shown}</td>" in page
        assert (home / "runs" / "demo" / "scores" / name / "rules" / "result.json").exists()


def test_the_demo_ends_in_a_tuned_model_and_scores_of_it(home):
    demo = home / "runs" / "demo"
    assert (demo / "tuned" / "model.safetensors").exists()
    for model in ("sft", "tuned"):
        scores = json.loads((demo / "scores" / model / "rules" / "result.json").read_text(encoding="utf-8"))
        assert scores["n"] == 4
        assert not scores["failed"]


def test_using_a_model_works(home):
    run_all(commands("use", ROOT / "docs" / "use.md"), home)
    assert (home / "exported" / "model.safetensors").exists()
    lines = (home / "clean-ja.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1000


def test_surgery_on_the_demo_works(home):
    run_all(commands("demo", ROOT / "docs" / "surgery.md"), home)
    assert (home / "phonebook" / "heat_map.png").exists()


def test_evaluation_of_the_demo_works(home):
    run_all(commands("demo", ROOT / "docs" / "evaluation.md"), home)
    assert (home / "runs" / "evaluation" / "demo" / "report.html").exists()


def test_quantization_of_the_demo_works(home):
    run_all(commands("demo", ROOT / "docs" / "quantization.md"), home)
    assert (home / "four" / "quantized" / "weights.safetensors").exists()


def test_the_python_example_runs():
    page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    scope: dict = {}
    exec(compile(example, "use.md", "exec"), scope)
    assert scope["logits"].shape == (1, 12, 4096)
    axes = scope["logical_axes"](scope["model"])["run_0"]["layer_0"]["mixer"]["in_proj"]
    assert axes == ("layers", None, "embed", "mamba_heads", "head_dim")


def test_the_docs_link_to_what_exists():
    for page in (ROOT / "docs").rglob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_map_names_what_exists():
    layout = README.partition("## Repository layout")[2].partition("\n## ")[0]
    paths = re.findall(r"^\| `([^`]+)` \|", layout, re.MULTILINE)
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists(), path
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{name}: {link}"


def test_generated_parts_of_the_readme_are_current():
    parts = runpy.run_path(str(ROOT / "scripts" / "readme_parts.py"))
    assert parts["with_packages"](README) == README, "run scripts/readme_parts.py"
    for name, text in parts["badges"]().items():
        assert (ROOT / "docs" / "images" / name).read_text(encoding="utf-8") == text, "run scripts/readme_parts.py"


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert {path.name for path in pictures} == set(re.findall(r"images/(\w+\.png)", README))
    assert max((path.stat().st_size for path in pictures), default=0) <= 300_000


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == plamo2_jax.__version__
    assert citation["license"] == "Apache-2.0"
