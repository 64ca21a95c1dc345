"""List every error message of this package, from the sources: the page "Error index" of the documentation.

    python scripts/error_index.py        # print the page

A message is an f-string in most places. Its expressions are shown in italics as the words of the source, such as *path*. The page is
written when the documentation is built (scripts/docs_pages.py), so it is never older than the sources. Nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"plamo2_jax": ROOT / "src" / "plamo2_jax", "plamo2_kernels": ROOT / "kernels"}
_LONGEST_EXPRESSION = 24
_TEMPLATE = """# Error index

A command that fails with exit status 2 prints one message: what is wrong, where, what is allowed and how to fix it. This page lists all
{count} messages by package. Words in *italics* stand for values. Search this page for a few words of your message. The name after a message
is the function that raises it.

A traceback instead of a sentence is a bug in this project or in a library.
"""


@dataclass(frozen=True)
class Message:
    """A message that a function raises.

    Attributes:
        error: name of the exception class.
        text: the message in Markdown.
        module: dotted name of the module.
        function: dotted name of the function or method within the module; empty at the top level.
    """

    error: str
    text: str
    module: str
    function: str


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def error_classes() -> set[str]:
    """Return the names of `PlamoError` and its subclasses, and of the errors of the kernels, which know no PlamoError."""
    bases = {}
    for folder in SOURCES.values():
        for path in folder.rglob("*.py"):
            for node in _tree(path).body:
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
    found = {"PlamoError", "ImplementationError"}
    while more := {name for name, parents in bases.items() if parents & found} - found:
        found |= more
    return found


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", text.replace("\n", " "))


def _markdown(node: ast.expr) -> str:
    """Return a message in Markdown: text as it is, expressions in italics."""
    if isinstance(node, ast.Constant):
        return _escaped(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_markdown, node.values))
    if isinstance(node, ast.FormattedValue):
        return _value(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _markdown(node.left) + _markdown(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_markdown(node.body)} / {_markdown(node.orelse)}"
    return _value(node)


def _value(node: ast.expr) -> str:
    """Return an expression in italics, shortened to the name that says most."""
    text = ast.unparse(node)
    if len(text) > _LONGEST_EXPRESSION:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join":
            text = ast.unparse(node.args[0]) if len(ast.unparse(node.args[0])) <= _LONGEST_EXPRESSION else "list"
        else:
            names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
            attributes = [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
            text = (attributes or names or ["…"])[0]
    return f"*{_escaped(text)}*"


def _messages_of(path: Path, module: str, errors: set[str]) -> Iterator[Message]:
    def visit(node: ast.AST, function: tuple[str, ...]) -> Iterator[Message]:
        for child in ast.iter_child_nodes(node):
            inner = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*function, child.name)
            if isinstance(child, ast.Call):
                name = getattr(child.func, "id", getattr(child.func, "attr", ""))
                if name in errors:
                    texts = [*child.args, *(keyword.value for keyword in child.keywords)]
                    # Some classes take a status or a field besides; the message is the longest text.
                    text = max(map(_markdown, texts), key=len, default="")
                    yield Message(name, text, module, ".".join(function))
            yield from visit(child, inner)

    yield from visit(_tree(path), ())


def messages() -> list[Message]:
    """Return all messages, by module and place in the file."""
    errors = error_classes()
    found = []
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
            found += _messages_of(path, module, errors)
    return found


def page() -> str:
    """Return the page in Markdown: a section for each package, a list for each module."""
    found = messages()
    lines = [_TEMPLATE.format(count=len(found))]
    package = module = ""
    for message in found:
        parts = message.module.split(".")
        if (group := ".".join(parts[:2])) != package:
            package = group
            lines.append(f"\n## {package}\n")
        if message.module != module:
            module = message.module
            lines.append(f"\n### {module}\n")
        where = f" `{message.function}`" if message.function else ""
        lines.append(f"* {message.text}{where}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
