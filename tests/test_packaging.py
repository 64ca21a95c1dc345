"""The wheel: it holds every package and data file, and works away from the source tree."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from plamo2_jax.plan.compiler import VERIFIED
from plamo2_jax.project.templates import TEMPLATES, project_files
from plamo2_jax.storage import files_below

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "window"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the built wheel installed, dependencies left to the running environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, since building leaves files behind that a next build would take for sources.
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("src", "kernels", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, folder], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(site, *arguments):
    """`plamo2 ...` of the wheel, run from its own folder."""
    script = f"import sys; sys.path.insert(0, {str(site)!r}); from plamo2_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=site, check=True, capture_output=True, text=True
    )


def test_setup_cfg_lists_every_package():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    roots = {"plamo2_jax": ROOT / "src" / "plamo2_jax", "plamo2_kernels": ROOT / "kernels"}
    found = {
        ".".join([name, *init.parent.relative_to(root).parts])
        for name, root in roots.items()
        for init in root.rglob("__init__.py")
    }
    # configs/ is installed as a package, but its files are not modules.
    assert listed == found | {"plamo2_jax.configs"}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_versions_that_are_installed_together_are_those_that_are_allowed(python):
    """constraints.txt pins one version of each for every Python, within the ranges of setup.cfg."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    asked = [
        pin
        for pin in map(Requirement, filter(None, lines))
        if not pin.marker or pin.marker.evaluate({"python_version": python})
    ]
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in asked}
    assert len(pinned) == len(asked)
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    ranges = [
        Requirement(line)
        for line in parser["options"]["install_requires"].splitlines()
        if line.strip(" #") and line[0] != "#"
    ]
    assert len(ranges) > 15
    for need in ranges:
        name = canonicalize_name(need.name)
        assert need.specifier.contains(pinned[name]), f"{need}: constraints.txt has {pinned[name]}"
    # The planner reads text of libtpu that is not stable: the extra names the verified versions, each with the jax that it belongs to.
    extra = [Requirement(line) for line in parser["options.extras_require"]["plan"].split("\n") if "libtpu" in line]
    (libtpu,) = (need.specifier for need in extra if need.marker.evaluate({"python_version": python}))
    assert str(libtpu) == {"3.11": "==0.0.42.*"}.get(python, "==0.0.50.*")
    assert libtpu.contains(pinned["libtpu"])
    assert [str(need.specifier) for need in extra] == [f"=={version}.*" for version in VERIFIED]
    assert pinned["jax"] == pinned["jaxlib"] == {"3.11": "0.10.2"}.get(python, "0.12.0.1")


def test_the_lowest_versions_are_those_of_setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    text = "\n".join([parser["options"]["install_requires"], extras["serve"], extras["gguf"]])
    needs = [Requirement(line) for line in text.splitlines() if line.strip() and line[0] != "#"]
    lowest = {
        canonicalize_name(need.name): [one.version for one in need.specifier if one.operator == ">="] for need in needs
    }
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints-lowest.txt").read_text().splitlines())
    pinned = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, filter(None, lines))}
    assert lowest.keys() == pinned.keys()
    for name, versions in lowest.items():
        assert len(versions) == 1, name
        assert pinned[name].contains(versions[0]), name


def test_every_file_that_is_not_code_is_in_the_wheel(site):
    source = ROOT / "src" / "plamo2_jax"
    data = {
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert {Path("report/page.html"), Path("data/bundled/ja.jsonl.xz")} <= data
    for path in data:
        assert (site / "plamo2_jax" / path).read_bytes() == (source / path).read_bytes(), path


def test_the_installed_wheel_reads_its_corpus_and_runs_a_model(site, tmp_path):
    script = "import sys; sys.path.insert(0, sys.argv[1]); import plamo2_jax; print(plamo2_jax.__file__)"
    output = subprocess.run([sys.executable, "-c", script, site], cwd=site, check=True, capture_output=True, text=True)
    assert Path(output.stdout.strip()).is_relative_to(site)

    run(site, "data", "corpus", "--output", tmp_path / "ja.jsonl", "--language", "ja", "--split", "heldout")
    assert len((tmp_path / "ja.jsonl").read_text(encoding="utf-8").splitlines()) > 50

    cases = np.load(GOLDEN / "cases.npz")
    np.savez(tmp_path / "in.npz", tokens=cases["single.tokens"][None], segment_ids=cases["single.segment_ids"][None])
    run(site, "logits", GOLDEN, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    logits = np.load(tmp_path / "out.npz")["logits"][0]
    assert np.linalg.norm(logits - cases["single.logits"]) < 2e-5 * np.linalg.norm(cases["single.logits"])
    assert "COMMAND" in run(site, "--help").stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_installed_wheel_writes_the_projects_of_the_source_tree(site, tmp_path, template):
    run(site, "init", tmp_path / "mine", "--template", template)
    files = project_files(template)
    assert {path.relative_to(tmp_path / "mine").as_posix() for path in files_below(tmp_path / "mine")} == set(files)
    for path, text in files.items():
        assert (tmp_path / "mine" / path).read_text(encoding="utf-8") == text


def test_nobody_is_told_to_install_this_project_by_a_name_on_an_index():
    """The name is not registered there: whoever registers it would get our users. A path, or a package of others, is fine."""
    name = "plamo2" + "-jax"  # In two parts, so that this file does not match.
    advice = re.compile(
        rf"{name.replace('-', '[-_.]')}\[|(pip3?|pipx|uvx?) .*(install|add|run)\b.* ['\"]?{name}\b(?!-)"
    )
    assert all(map(advice.search, (f"pip install '{name}[tpu]'", f"uv pip install {name}", f'pipx run "{name}"')))
    assert not any(map(advice.search, ("pip install -e '.[tpu]'", f"pip install 'dist/{name}-1.whl'", f"cd {name}")))
    suffixes = {".py", ".md", ".cfg", ".toml", ".txt", ".html", ".sh", ".yml", ".yaml", ""}
    found = []
    for folder in ("src", "kernels", "configs", "docs", "experiments", "scripts", "tests", "."):
        paths = (ROOT / folder).iterdir() if folder == "." else (ROOT / folder).rglob("*")
        for path in paths:
            if path.is_file() and path.suffix in suffixes and path.name != ".git":
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                found += [f"{path}:{number}: {line}" for number, line in enumerate(lines, 1) if advice.search(line)]
    assert found == []


def test_the_extras_that_messages_name_exist():
    """A message names an extra of setup.cfg, to be installed from a checkout."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = set(parser["options.extras_require"])
    named, from_an_index = [], []
    for folder in ("src", "docs", "README.md", "Makefile", "experiments", "integrations"):
        paths = [ROOT / folder] if (ROOT / folder).is_file() else (ROOT / folder).rglob("*")
        for path in paths:
            if path.suffix not in (".py", ".md", "") or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            named += [(path, extra) for group in re.findall(r"'\.\[([\w,-]+)\]'", text) for extra in group.split(",")]
            named += [(path, extra) for extra in re.findall(r"the extra `?([\w-]+)`?[ ,.:;]", text)]
            if path.is_relative_to(ROOT / "src"):
                from_an_index += [(path, found) for found in re.findall(r"pip install '?\w[\w-]*\[.*", text)]
    # Other projects have extras, too: words of prose that follow `the extra`.
    prose = {"work", "sources", "for", "steps"}
    assert len(named) > 20
    assert [(path, extra) for path, extra in named if extra not in extras | prose] == []
    assert from_an_index == []
