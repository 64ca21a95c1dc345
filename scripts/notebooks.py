"""Execute the notebooks and write their outputs (`make notebooks`).

    python scripts/notebooks.py [NAME ...] [--small] [--set NAME=VALUE ...] [--folder FOLDER] [--output FOLDER]

Each notebook runs in a kernel of its own, and all run in the same folder, so the base model is trained once. `--small` and `--set` replace
values of the cell with the tag `parameters`, as papermill does. Standard output, results and pictures are written. Logs on standard error
are left out.

The exit status is 1 if a cell fails, or if an output names a folder of this machine. It needs the extra `notebooks`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("sampling_and_caches", "sft_and_dpo", "pruning", "tpu_plan")
TIMEOUT = 1800
"""Longest time of one cell, in seconds."""
_INJECTED = "injected-parameters"


def execute(notebook: NotebookNode, folder: Path, parameters: Mapping[str, str]) -> None:
    """Execute a notebook in a folder and keep its outputs.

    Args:
        notebook: The notebook, which is changed.
        folder: Working folder of the kernel.
        parameters: Python expressions by the name of the parameter.

    Raises:
        CellExecutionError: A cell fails.
    """
    inject(notebook, parameters)
    client = NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with tempfile.TemporaryDirectory() as settings:
        # Neither the user's start-up files nor their history.
        client.execute(
            env={
                "JAX_PLATFORMS": "cpu",
                **os.environ,
                "IPYTHONDIR": settings,
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            }
        )
    notebook.cells = [cell for cell in notebook.cells if _INJECTED not in cell.metadata.get("tags", ())]
    tidy(notebook)


def inject(notebook: NotebookNode, parameters: Mapping[str, str]) -> None:
    """Insert a cell that replaces parameters behind the cell with the tag `parameters`."""
    if not parameters:
        return
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    lines = "\n".join(f"{name} = {value}" for name, value in parameters.items())
    cell = nbformat.v4.new_code_cell(lines, id=_INJECTED, metadata={"tags": [_INJECTED]})
    notebook.cells.insert(place + 1, cell)


def tidy(notebook: NotebookNode) -> None:
    """Keep standard output, results and pictures; remove logs, times and the version of the kernel; number the cells."""
    number = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k == "tags"})
        kept = [each for each in cell.outputs if each.output_type != "stream" or each.name == "stdout"]
        cell.outputs = []
        for each in kept:
            if "execution_count" in each:
                each.execution_count = number
            if each.output_type == "stream" and cell.outputs and cell.outputs[-1].output_type == "stream":
                cell.outputs[-1].text += each.text
            else:
                cell.outputs.append(each)
    notebook.metadata.language_info = NotebookNode(name="python")


def machine_paths(notebook: NotebookNode, folder: Path) -> list[str]:
    """Return the folders of this machine that occur in the outputs."""
    private = {str(path) for path in (ROOT, folder, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir()))} - {"/"}
    text = "".join(str(cell.outputs) for cell in notebook.cells if cell.cell_type == "code")
    return sorted(path for path in private if path in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Execute notebooks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of the notebooks; left out, all")
    parser.add_argument("--small", action="store_true", help="few steps: sets SMALL = True")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other values of parameters")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "notebooks", help="working folder")
    parser.add_argument("--output", type=Path, default=ROOT / "notebooks", help="folder for the executed notebooks")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no notebook {min(unknown)}: there are {', '.join(NAMES)}")
    given = {"SMALL": "True"} if options.small else {}
    given |= dict(each.split("=", 1) for each in options.set)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or NAMES:
        begun = time.monotonic()
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        parameter_cell = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        used = {key: value for key, value in given.items() if f"{key} = " in parameter_cell}
        try:
            execute(notebook, options.folder, used)
        except CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        if found := machine_paths(notebook, options.folder):
            print(f"{name}: the outputs name {', '.join(found)}, a folder of this machine", file=sys.stderr)
            return 1
        nbformat.write(notebook, options.output / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
