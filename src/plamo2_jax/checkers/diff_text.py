"""Unified diffs: whether a text has the form that `git diff` writes."""

from __future__ import annotations

import re

_HUNK = re.compile(r"@@ -\d{1,9}(?:,(\d{1,9}))? \+\d{1,9}(?:,(\d{1,9}))? @@")
_HEADERS = (
    "index ",
    "new file mode ",
    "deleted file mode ",
    "old mode ",
    "new mode ",
    "similarity index ",
    "rename from ",
    "rename to ",
)


def is_diff(text: str) -> bool:
    """Return whether a text is a unified diff of one or more files with at least one hunk.

    Each file has a --- and a +++ line, and a hunk has at most the numbers of lines that its header states.
    """
    lines = text.strip("\n").splitlines()
    position, hunks = 0, 0
    while position < len(lines):
        line = lines[position]
        if line.startswith("--- "):
            if position + 1 == len(lines) or not lines[position + 1].startswith("+++ "):
                return False
            position += 2
            while position < len(lines) and not lines[position].startswith(("diff --git ", "--- ")):
                if not lines[position].strip():
                    position += 1
                    continue
                end = _hunk_end(lines, position)
                if end is None:
                    return False
                position, hunks = end, hunks + 1
        elif line.startswith(("diff --git ", *_HEADERS)) or not line.strip():
            position += 1
        else:
            return False
    return hunks > 0


def _hunk_end(lines: list[str], position: int) -> int | None:
    """Return the position after a hunk, or None if no valid hunk begins here."""
    header = _HUNK.match(lines[position])
    if header is None:
        return None
    old, new = (1 if number is None else int(number) for number in header.groups())
    position += 1
    while position < len(lines):
        line, following = lines[position], lines[position + 1 : position + 2]
        # "--- a" can also be the removed line "-- a", such as a comment in SQL.
        begins_file = line.startswith("--- ") and (old <= 0 or any(each.startswith("+++ ") for each in following))
        if begins_file or line.startswith(("@@ ", "diff --git ")):
            break
        mark = line[:1]
        if mark not in (" ", "-", "+", "\\"):
            return None
        old -= mark in " -"
        new -= mark in " +"
        position += 1
    return position if old >= 0 and new >= 0 else None
