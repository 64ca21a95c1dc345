"""Docstrings describe the arguments that functions have: each name below `Args:` is a parameter, or a field of a dataclass."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def described(text):
    """Yield the names below `Args:`; one line may describe several, as in `q, k, v: ...`."""
    section = re.search(r"^( *)Args:\n((?:\1 +.*\n|\n)+)", text + "\n", re.MULTILINE)
    if section:
        indent = re.match(r" *", section.group(2)).group()
        for names in re.findall(rf"^{indent}([\w*]+(?:, [\w*]+)*):", section.group(2), re.MULTILINE):
            yield from (name.lstrip("*") for name in names.split(", "))


def parameters(node):
    """Return the names of a function's parameters, or of what makes an object of a class."""
    if isinstance(node, ast.ClassDef):
        fields = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        made = [
            item for item in node.body if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__new__")
        ]
        return fields.union(*map(parameters, made))
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in every if argument}


def test_every_described_argument_exists():
    wrong, checked = [], 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
                text := ast.get_docstring(node)
            ):
                names = set(described(text))
                checked += len(names)
                if unknown := names - parameters(node):
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name}: {', '.join(sorted(unknown))}")
    assert checked > 1000
    assert wrong == []
