"""The notebooks: their form and stored outputs, what they import, and their execution with few steps (make docs-test)."""

import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest

import plamo2_jax
from support.documents import ROOT
from support.short_demo import environment

NAMES = ("sampling_and_caches", "sft_and_dpo", "pruning", "tpu_plan")
SCRIPT = ROOT / "scripts" / "notebooks.py"


def read(path):
    """Return the cells of a notebook: type, source, outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]]


def code(path):
    """Return the code cells of a notebook."""
    return [cell for cell in read(path) if cell["cell_type"] == "code"]


def stored(name):
    """Return the path of a notebook in the repository."""
    return ROOT / "notebooks" / f"{name}.ipynb"


def printed(path):
    """Return all text that the cells of a notebook printed."""
    return "".join("".join(each.get("text", ())) for cell in code(path) for each in cell["outputs"])


def test_the_page_and_the_script_list_every_notebook():
    found = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert found == set(NAMES) == set(re.findall(r"\(\.\./notebooks/(\w+)\.ipynb\)", page))
    (listed,) = re.findall(r"^NAMES = (\(.*\))$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert ast.literal_eval(listed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_complete_short_and_without_errors(name):
    path = stored(name)
    assert path.stat().st_size < 150_000
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run make notebooks"
    outputs = [each for cell in cells for each in cell["outputs"]]
    assert outputs
    assert {each["output_type"] for each in outputs} <= {"stream", "display_data", "execute_result"}
    assert {each["name"] for each in outputs if each["output_type"] == "stream"} == {"stdout"}
    pictures = [each["data"] for each in outputs if "image/png" in each.get("data", {})]
    assert len(pictures) == 1
    text = printed(path)
    assert len(text.splitlines()) < 120
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|opt|Users|var)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_code_compiles_and_the_names_that_it_imports_exist(name):
    seen = set()
    for number, cell in enumerate(code(stored(name))):
        tree = ast.parse(cell["source"], f"{name}, code cell {number + 1}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    name_of_module = f"{node.module}.{alias.name}"
                    found = hasattr(module, alias.name) or importlib.util.find_spec(name_of_module) is not None
                    assert found, f"{node.module} has no {alias.name}"
                    seen.add(node.module)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "plamo2":
                assert node.attr in (*plamo2_jax.__all__, "__file__"), node.attr
                seen.add(node.attr)
    assert seen


@pytest.mark.parametrize("name", NAMES)
def test_the_links_lead_to_files(name):
    text = "\n".join(cell["source"] for cell in read(stored(name)) if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    for link in links:
        assert (ROOT / "notebooks" / link).resolve().is_file(), link
    for other in re.findall(r"`(\w+)\.ipynb`", text):
        assert other in NAMES


def test_common_cells_are_equal():
    cells = {name: [cell["source"] for cell in code(stored(name))] for name in NAMES}
    assert len({sources[0] for sources in cells.values()}) == 1
    assert "REPOSITORY" in cells["tpu_plan"][0]
    trained = [[each for each in cells[name] if "plamo2.train_model(base)" in each] for name in NAMES[:3]]
    assert trained[0] == trained[1] == trained[2]
    assert len(trained[0]) == 1


@pytest.fixture
def not_installed(monkeypatch, tmp_path):
    """Let the first cell believe that the package is missing, in an empty folder."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    return code(stored("tpu_plan"))[0]["source"]


def test_without_a_checkout_the_first_cell_asks_for_the_repository(not_installed):
    with pytest.raises(RuntimeError, match="set REPOSITORY to the address of its git repository"):
        exec(not_installed, {})


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no git checkout")
def test_the_first_cell_clones_the_repository_and_installs_the_clone(not_installed, monkeypatch, tmp_path):
    installer = tmp_path / "python"
    installer.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/arguments"\n', encoding="utf-8")
    installer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(installer))
    exec(not_installed.replace('REPOSITORY = ""', f"REPOSITORY = {str(ROOT)!r}"), {})
    clone = tmp_path / "plamo2-jax"
    assert (clone / "setup.cfg").is_file()
    assert (tmp_path / "arguments").read_text(encoding="utf-8").split() == [
        "-m",
        "pip",
        "install",
        "--quiet",
        str(clone),
    ]


def execute(folder, *arguments):
    """Execute notebooks with few steps; return the folder of the results."""
    pytest.importorskip("nbclient", reason="nbclient is not installed (the notebooks extra has it)")
    output = folder / "output"
    output.mkdir()
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--small", "--folder", folder / "work", "--output", output],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.mark.docs
def test_the_notebooks_run(tmp_path):
    output = execute(tmp_path, "--set", "COMPILE=False")
    for name in NAMES:
        assert [c["source"] for c in read(output / f"{name}.ipynb")] == [c["source"] for c in read(stored(name))]
    texts = {name: printed(output / f"{name}.ipynb") for name in NAMES}
    plain, drafted = map(int, re.findall(r"(\d+) with(?:out)? drafts", texts["sampling_and_caches"]))
    assert drafted <= plain
    assert re.search(r"^dpo +\d+%$", texts["sft_and_dpo"], re.MULTILINE)
    rows = re.findall(r"^(base|pruned by activations) +(\d\.\d+) +(\d\.\d+)$", texts["pruning"], re.MULTILINE)
    assert {row[0] for row in rows} == {"base", "pruned by activations"}
    assert "this is the recorded plan" in texts["tpu_plan"]


@pytest.mark.docs
def test_the_plan_is_compiled_if_the_compiler_is_installed(tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the plan extra")
    output = execute(tmp_path, "tpu_plan")
    assert "compiled by libtpu" in printed(output / "tpu_plan.ipynb")
