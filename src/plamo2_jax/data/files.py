"""Find the data files for a file name, a folder or a pattern.

Links to files and folders are followed. Each file is read once, even if several names lead to it, and a link back to a parent folder is
not followed again. Skipped files and folders are noted in the report and on stderr.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from plamo2_jax.data.documents import ReadReport
from plamo2_jax.errors import PlamoError

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
SUFFIXES = (".jsonl", ".ndjson", ".txt", ".parquet", ".arrayrecord", ".array_record")
_ALLOWED = f"{', '.join(SUFFIXES)} (text and JSON lines also with {', '.join(COMPRESSIONS)})"
_ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$")
_WILDCARD = re.compile(r"[*?[]")


def format_of(path: Path) -> str | None:
    """Return the format of a file by its name: "jsonl", "text", "parquet" or "arrayrecord"; None for other names."""
    name = path.name[: -len(path.suffix)] if path.suffix in COMPRESSIONS else path.name
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if name.endswith(".txt"):
        return "text"
    if path.suffix == ".parquet":
        return "parquet"
    return "arrayrecord" if _ARRAY_RECORD.search(path.name) else None


def find_files(spec: str | Path, report: ReadReport | None = None) -> list[Path]:
    """Return the files for a file name, a folder or a pattern, sorted, each file once.

    In a folder, hidden files and files of other formats are skipped.

    Args:
        spec: Name of a file or folder, or a pattern with shell wildcards; "**" matches any number of folders.
        report: Report that notes each file or folder that is skipped because it was found before.

    Raises:
        PlamoError: There is no such file, or a file has a format that cannot be read.
    """
    spec = str(spec)
    path = Path(spec)
    report = ReadReport() if report is None else report
    order = None
    if path.is_dir():
        found = [file for file in _match(path, ("**", "*"), report) if format_of(file)]
        if not found:
            raise PlamoError(f"the folder {spec} holds no file that can be read: the suffix must be one of {_ALLOWED}")
    elif path.is_file():
        found = [path]
    else:
        found, order = list(_match(*_split(spec), report)) if _WILDCARD.search(spec) else [], str
        if not found:
            raise PlamoError(f"{spec} does not exist: it must be a file, a folder or a pattern that matches a file")
    for file in found:
        if format_of(file) is None:
            raise PlamoError(f"{file} cannot be read: the suffix must be one of {_ALLOWED}")
    return list(each_once(sorted(found, key=order), report))


def each_once(
    files: Iterable[Path], report: ReadReport, seen: dict[str | tuple[int, int], Path] | None = None
) -> Iterator[Path]:
    """Yield each file once, even if symbolic links, hard links or other names lead to it several times.

    Args:
        files: Paths of files.
        report: Report that notes each omitted file.
        seen: First names of the files found so far, by real path, or by device and inode. The function extends it.
    """
    seen = {} if seen is None else seen
    for file in files:
        status = file.stat()
        # Inodes are compared only for files with hard links, because some network file systems repeat inode numbers.
        identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 else os.path.realpath(file)
        first = seen.setdefault(identity, file)
        if first is file:
            yield file
        else:
            report.note(f"{file} is the same file as {first}" if file != first else f"{file} is given twice")


def _split(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """Return the folder in which a pattern begins, and the parts of the pattern below it."""
    parts = Path(pattern).parts
    literal = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    return Path(*parts[:literal]), parts[literal:]


def _match(base: Path, parts: tuple[str, ...], report: ReadReport) -> Iterator[Path]:
    """Yield the files below `base` that match a pattern.

    Each folder is visited once for each part of the pattern, so loops of links, or many links to one folder, do not repeat files.
    """
    visited: dict[tuple[str, int], Path] = {}
    pending = [(base, 0)]
    while pending:
        folder, position = pending.pop()
        first = visited.setdefault((os.path.realpath(folder), position), folder)
        if first is not folder:
            if folder != first:
                report.note(f"{folder} is the same folder as {first}")
            continue
        part = parts[position]
        if part == "**":
            if position + 1 < len(parts):
                pending.append((folder, position + 1))
            wanted, following = re.compile(r"[^.].*", re.DOTALL), position
        else:
            # As in a shell, a wildcard at the beginning does not match the dot of a hidden name.
            hidden = "" if part.startswith(".") else r"(?!\.)"
            wanted, following = re.compile(hidden + fnmatch.translate(part)), position + 1
        for name in _names(folder):
            path = folder / name
            if not wanted.fullmatch(name):
                continue
            if path.is_dir():
                if following < len(parts):
                    pending.append((path, following))
            elif following == len(parts) or (part == "**" and position + 1 == len(parts)):
                if path.is_file():
                    yield path
                elif path.exists():
                    report.note(f"{path} is a pipe, a socket or a device, not a regular file")
                elif path.is_symlink():
                    report.note(f"{path} is a link to a file that does not exist")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise PlamoError(
            f"{folder} cannot be listed: permission denied. Grant read permission, or give the files"
        ) from None
