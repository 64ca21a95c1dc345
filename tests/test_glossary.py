"""docs/glossary.md names every axis letter of the code: those of jaxtyping annotations and of einsums."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def letters(tree):
    """Yield the axis names in annotations such as `Float[Array, "b k-1 *c"]`, and in strings such as "btd,df->btf"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
            shape = node.slice.elts[1]
            kind = getattr(node.value, "id", "")
            if (
                isinstance(shape, ast.Constant)
                and isinstance(shape.value, str)
                and kind[:1].isupper()
                and kind != "Literal"
            ):
                yield from re.findall(r"[a-z]\w*", shape.value)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"[a-z.,]+->[a-z.]+", node.value)
        ):
            yield from re.findall(r"[a-z]", node.value)


def test_every_axis_letter_is_in_the_glossary():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    axes = page.partition("## Axis letters")[2].partition("\n## ")[0]
    listed = {
        name for cell in re.findall(r"^\| ([^|]+) \|", axes, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    used = {name: path.name for path in SOURCES for name in letters(ast.parse(path.read_text(encoding="utf-8")))}
    assert {"b", "t", "h", "p"} <= used.keys()
    assert {name: path for name, path in used.items() if name not in listed} == {}
