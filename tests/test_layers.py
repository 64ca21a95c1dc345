"""No import circle between modules, imports within functions and under TYPE_CHECKING included."""

from __future__ import annotations

import graphlib

import grimp


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
