"""Fingerprints of files and folders: by content, which is read again only where size or time of change differ."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LOGS = frozenset({"metrics.jsonl", "tensorboard", "goodput.json", "stalls.txt", "profile"})
"""What a run writes about itself, with times in it: no other stage's result depends on it, and looking at it may change it."""


def counts(name: str) -> bool:
    """Whether a file or folder of this name is something made: no log, and nothing that was left half-written."""
    return not (name in LOGS or name.startswith(".") or ".orbax-checkpoint-tmp" in name)


Files = dict[str, list[Any]]
"""By path within a folder (`.` for a file that is given itself): bytes, time of change in ns, SHA-256."""


def scan(root: Path, known: Mapping[str, list[Any]], skip: Callable[[Path], bool] = lambda path: False) -> Files:
    """All files below a folder, or the file itself; none where there is nothing.

    Args:
        root: the file or folder.
        known: an earlier result: what has the same size and time of change is not read again.
        skip: which files and folders to leave out.
    """
    found: Files = {}

    def visit(path: Path, name: str) -> None:
        if skip(path):
            return
        if path.is_dir():
            for child in sorted(os.listdir(path)):
                visit(path / child, child if name == "." else f"{name}/{child}")
        elif path.is_file():
            found[name] = entry(path, known.get(name))

    visit(root, ".")
    return found


def entry(path: Path, known: list[Any] | None = None) -> list[Any]:
    """Size, time of change and digest of a file; the digest is the known one where the other two are."""
    status = path.stat()
    size, changed = status.st_size, status.st_mtime_ns
    if known is not None and known[:2] == [size, changed]:
        return list(known)
    with path.open("rb") as file:
        return [size, changed, hashlib.file_digest(file, "sha256").hexdigest()]


def digest(files: Mapping[str, list[Any]]) -> str:
    """One digest of names and contents."""
    content = {name: figures[2] for name, figures in sorted(files.items())}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
