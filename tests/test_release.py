"""What a release consists of: the workflow, the form of the changelog, and one place for the version."""

import configparser
import re
from pathlib import Path

import yaml

import plamo2_jax

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))


def test_the_workflow_calls_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"^([\w. -]+):(?!=)", makefile, re.MULTILINE) for name in line.split()}
    run = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    called = [
        re.fullmatch(r"make ([\w-]+) PYTHON=\S+( \S+)?|make ([\w-]+) PYTHON=python\$\{\{ .* \}\}", line) for line in run
    ]
    assert all(called), run
    assert {found[1] or found[3] for found in called} == {"test", "test-lowest", "docs", "release-check"} <= targets
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_workflow_runs_the_pythons_that_setup_cfg_names():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    named = re.findall(r"Python :: (\d\.\d+)", parser["metadata"]["classifiers"])
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert parser["metadata"]["version"] == "attr: plamo2_jax.__version__"


def test_the_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (.*)$", text, re.MULTILINE)
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d( \[YANKED\])?", name) for name in releases]
    assert releases[0] == "[Unreleased]" or versions[0]
    assert all(versions[1:])
    released = [found[1] for found in versions if found]
    assert not released or plamo2_jax.__version__ >= released[0]
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_the_version_is_in_one_place():
    version = re.escape(plamo2_jax.__version__)
    places = [ROOT / name for name in ("setup.cfg", "pyproject.toml", "Makefile")]
    places += [*(ROOT / "src" / "plamo2_jax").rglob("*.py")]
    found = [
        path.relative_to(ROOT).as_posix()
        for path in places
        if re.search(rf"^(__version__|version) *= *['\"]?{version}\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert found == ["src/plamo2_jax/__init__.py"]
