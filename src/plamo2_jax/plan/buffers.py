"""The files that XLA writes when it has assigned buffers: the program, and the list of its buffers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_PROGRAM = "*.after_optimizations_after_buffer_assignment.txt"
_BUFFERS = "*.after_optimizations-buffer-assignment.txt"
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$", re.MULTILINE)


def dump_options(dump: Path) -> dict[str, Any]:
    """Return the compiler options with which XLA writes the files to a folder."""
    return {"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True}


def program_text(dump: Path) -> str:
    """Return the text of the program; empty if the compiler has not written all of it. The entry computation is the last one."""
    for path in dump.glob(_PROGRAM):
        text = path.read_text(encoding="utf-8")
        if "\nENTRY " in text and text.rstrip().endswith("}"):
            return text
    return ""


def read_buffers(dump: Path) -> dict[str, int] | None:
    """Return `buffer_bytes` of the compiled program; None if there is no list of buffers."""
    path = next(dump.glob(_BUFFERS), None)
    return None if path is None else buffer_bytes(path.read_text(encoding="utf-8"))


def buffer_bytes(text: str) -> dict[str, int]:
    """Return the HBM bytes of arguments, temporaries and outputs in the compiler's list of buffers."""
    sizes = {"argument_bytes": 0, "temporary_bytes": 0, "output_bytes": 0}
    for size, kind in _ALLOCATION.findall(text):
        # A color other than 0 is another memory. The shape of a buffer may contain any text.
        kind = re.sub(r"shape is \|.*\||shape \|.*\|", "shape", kind).rstrip(": ")
        if re.search(r", color [1-9]", kind) or kind.endswith("constant"):
            continue
        if ", parameter " in kind:
            sizes["argument_bytes"] += int(size)
        elif kind.endswith("maybe-live-out"):
            sizes["output_bytes"] += int(size)
        else:
            sizes["temporary_bytes"] += int(size)
    return sizes
