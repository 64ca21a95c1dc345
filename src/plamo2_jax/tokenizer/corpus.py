"""Documents from a user's own files: plain text, one document a file, or JSON lines, one document a line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
JSONL_SUFFIXES = (".jsonl", ".ndjson")


def find_files(inputs: Iterable[str | Path]) -> list[Path]:
    """The files named, and every file below the folders named (hidden ones left out), in sorted order.

    Raises:
        ValueError: nothing is named, an input does not exist or a folder holds no file.
    """
    files: list[Path] = []
    for name in map(Path, inputs):
        if name.is_dir():
            found = [p for p in sorted(name.rglob("*")) if p.is_file() and not _hidden(p.relative_to(name))]
            if not found:
                raise ValueError(f"the folder {name} holds no file")
            files += found
        elif name.is_file():
            files.append(name)
        else:
            raise ValueError(f"{name} is neither a file nor a folder")
    if not files:
        raise ValueError("no input is named; name at least one file or folder")
    return files


def read_documents(inputs: Iterable[str | Path], text_field: str = "text") -> Iterator[str]:
    """Yields the documents of files and folders; `.gz`, `.xz` and `.bz2` are read through.

    Raises:
        ValueError: a file is not UTF-8 or a line is not a JSON object with a string in `text_field`; names file and line.
    """
    for path in find_files(inputs):
        opener = OPENERS.get(path.suffix, open)
        inner = path.with_suffix("") if path.suffix in OPENERS else path
        try:
            with opener(path, "rb") as file:
                if inner.suffix in JSONL_SUFFIXES:
                    yield from _json_lines(path, file, text_field)
                else:
                    yield file.read().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None
        except (EOFError, lzma.LZMAError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None


def _json_lines(path: Path, file: Iterable[bytes], text_field: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 (byte {error.start} of the line)") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        text = record.get(text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{path}, line {number}: no string in the field {text_field!r}")
        yield text


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
