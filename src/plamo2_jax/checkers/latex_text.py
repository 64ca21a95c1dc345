"""LaTeX: whether groups, environments and formulas are closed, and whether a text is one table."""

from __future__ import annotations

import re

_COMMENT = re.compile(r"(?<!\\)%[^\n]*")
_PIECE = re.compile(r"\\(begin|end)\s*\{([^{}\n]{1,100})\}|\\([\[\]()])|\\item\b|\\.|\$\$|[${}]", re.DOTALL)
_TABULAR = re.compile(r"\\(begin|end)\{(tabular\*?)\}")
_COLUMNS = re.compile(r"\s*(?:\[[^\]]{0,1000}\]\s*)?\{(?:[^{}]|\{[^{}]*\})*\}")
_LISTS = frozenset(("itemize", "enumerate", "description"))
_VERBATIM = frozenset(("verbatim", "lstlisting"))


def is_latex(text: str) -> bool:
    """Return whether braces, environments and formulas are closed in order, and \\item occurs inside lists only.

    A text without commands is LaTeX too. Unknown commands are not refused.
    """
    text = _COMMENT.sub("", text)
    stack: list[str] = []
    lists = position = 0
    while match := _PIECE.search(text, position):
        position = match.end()
        kind, name, delimiter = match.groups()
        piece = match.group()
        if kind == "begin":
            if name in _VERBATIM:
                end = text.find(rf"\end{{{name}}}", position)
                if end < 0:
                    return False
                position = end + len(rf"\end{{{name}}}")
                continue
            stack.append(f"begin {name}")
            lists += name in _LISTS
        elif kind == "end":
            if not stack or stack.pop() != f"begin {name}":
                return False
            lists -= name in _LISTS
        elif delimiter is not None and delimiter in "[(":
            stack.append(delimiter)
        elif delimiter is not None:
            if not stack or stack.pop() != {"]": "[", ")": "("}[delimiter]:
                return False
        elif piece == r"\item":
            if lists == 0:
                return False
        elif piece in ("$", "$$"):
            if stack and stack[-1] == piece:
                stack.pop()
            else:
                stack.append(piece)
        elif piece == "{":
            stack.append("{")
        elif piece == "}" and (not stack or stack.pop() != "{"):
            return False
    return not stack


def is_latex_table(text: str) -> bool:
    """Return whether a text is one tabular environment with a column specification, alone or in \\[ \\]."""
    text = _COMMENT.sub("", text).strip()
    if text.startswith(r"\[") and text.endswith(r"\]"):
        text = text[2:-2].strip()
    marks = list(_TABULAR.finditer(text))
    if len(marks) != 2:
        return False
    first, last = marks
    return (
        [first.group(1), last.group(1)] == ["begin", "end"]
        and first.group(2) == last.group(2)
        and first.start() == 0
        and last.end() == len(text)
        and _COLUMNS.match(text, first.end()) is not None
    )
