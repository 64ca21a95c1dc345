"""The import contract names all modules. No module imports itself through others, by imports in functions and under TYPE_CHECKING, too."""

from __future__ import annotations

import configparser
import graphlib
import re
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]


def test_the_contract_names_every_module_of_the_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    layers = settings["importlinter:contract:layers"]["layers"]
    named = {name.removeprefix("plamo2_jax.") for name in re.findall(r"plamo2_jax\.\w+", layers)}
    package = ROOT / "src" / "plamo2_jax"
    modules = {path.stem for path in package.glob("[!_]*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert named == modules


def test_no_module_imports_itself_through_others():
    graph = grimp.build_graph("plamo2_jax", "plamo2_kernels", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 500
    # The package imports its public names when they are first used. Its other imports are for type checkers.
    imports["plamo2_jax"] = set()
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
