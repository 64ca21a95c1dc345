"""Write the pages of the API reference: one page per package, with every public module, class and function.

mkdocstrings reads signatures and docstrings from the sources when the documentation is built (`make docs`); no module is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"plamo2_kernels": ROOT / "kernels", "plamo2_jax": ROOT / "src" / "plamo2_jax"}
# Commands have `plamo2 VERB --help`. Files in torch_files are copied into exports and use transformers.
LEFT_OUT = {"plamo2_jax.cli", "torch_files"}


def has_public_names(path: Path) -> bool:
    """Say whether a module defines a public function or class that has a docstring."""
    kinds = ast.FunctionDef | ast.ClassDef
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, kinds) and node.name[0] != "_" and ast.get_docstring(node) for node in body)


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the path of each public module of an import root, in the order of names."""
    folder = SOURCES[package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        private = any(part.startswith("_") and part != "__init__" for part in parts)
        if not private and not any(name.startswith(left) or left in parts for left in LEFT_OUT):
            yield name, path


def summary(path: Path) -> str:
    """Return the first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def pages() -> dict[str, str]:
    """Return the Markdown of every page, by its path below docs/."""
    groups: dict[str, list[tuple[str, Path]]] = {}
    for package in SOURCES:
        for name, path in modules(package):
            parts = name.split(".")
            is_package = (SOURCES[package] / "/".join(parts[1:2])).is_dir() and len(parts) > 1
            groups.setdefault(".".join(parts[:2]) if is_package else package, []).append((name, path))
    found = {}
    for group, members in groups.items():
        lines = [f"# {group}\n"]
        if members[0][0] == group and (text := summary(members[0][1])):
            lines.append(f"{text}\n")
        for name, path in members:
            if has_public_names(path):
                lines.append(f"::: {name}\n")
        if len(lines) > 2:
            found[f"api/{group}.md"] = "\n".join(lines)
    table = [f"| [`{group}`]({group}.md) | {summary(members[0][1])} |" for group, members in groups.items()]
    found["api/index.md"] = _INDEX + "\n".join(table) + "\n"
    return found


_INDEX = """# API reference

Signatures and docstrings of all public functions and classes, from the sources. Shapes in annotations such as `Float[Array, "b t h p"]` use
the letters of the [glossary](../glossary.md#axis-letters). Names that begin with an underscore are private. `plamo2 COMMAND --help`
describes the [command line](../command_line.md).

| package | contents |
|---|---|
"""
