"""Fingerprint files and folders by content. A file is read again only if its size or modification time changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LOGS = frozenset(
    {"metrics.jsonl", "tensorboard", "goodput.json", "run_id.json", "stalls.txt", "profile", "wandb", "report.html"}
)
"""Logs and the report of a run. They contain times, and no stage's result depends on them."""


def counts(name: str) -> bool:
    """Return whether a file or folder of this name is an output: neither a log nor a half-written file."""
    return not (name in LOGS or name.startswith(".") or ".orbax-checkpoint-tmp" in name)


Files = dict[str, list[Any]]
"""Path within a folder (`.` for a single file) → [bytes, modification time in ns, SHA-256]."""


def is_log(path: Path) -> bool:
    """Return whether a path is a log or a half-written file in the folder of a run or a model."""
    return not counts(path.name) and (path.parent / "config.json").is_file()


def scan(root: Path, known: Mapping[str, list[Any]], skip: Callable[[Path], bool] = lambda path: False) -> Files:
    """Fingerprint all files below a folder, or a single file; return {} if the path does not exist.

    Args:
        root: the file or folder.
        known: an earlier result. Files with the same size and modification time are not read again.
        skip: whether to leave out a file or folder.
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
    """Return size, modification time and digest of a file; the known digest if size and time are unchanged."""
    status = path.stat()
    size, changed = status.st_size, status.st_mtime_ns
    if known is not None and known[:2] == [size, changed]:
        return list(known)
    with path.open("rb") as file:
        return [size, changed, hashlib.file_digest(file, "sha256").hexdigest()]


def digest(files: Mapping[str, list[Any]]) -> str:
    """Return one digest of the names and contents of files."""
    content = {name: figures[2] for name, figures in sorted(files.items())}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
