"""Whether files are what was written: a manifest with the size and checksum of every file of a checkpoint.

Orbax and TensorStore notice a file that is missing or cut short, but not every flipped byte. So a checkpoint of training, and a run
folder that `checkpoint.save_model` writes, carry manifest.json with the size and BLAKE2b digest of every file. A folder without one (an
older version wrote none) is read without a check. Folders of the public layout have no checksums: safetensors has no place for them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from plamo2_jax.json_input import read_json_object
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import files_below, is_remote, write_whole

MANIFEST = "manifest.json"
# Hashing releases the interpreter's lock; more threads than this wait for the disk.
_THREADS = min(16, os.cpu_count() or 1)


def write_manifest(folder: Path, items: Iterable[str], about: Mapping[str, Any] | None = None) -> None:
    """Write manifest.json into a folder whose items are complete.

    Args:
        folder: the folder.
        items: files and folders in it to list.
        about: what else to record; JSON types.
    """
    paths = [folder / item for item in items]
    files = sorted(file for path in paths for file in (files_below(path) if path.is_dir() else [path]))
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = dict(
            zip((file.relative_to(folder).as_posix() for file in files), pool.map(_entry, files), strict=True)
        )
    content = json.dumps({**(about or {}), "files": entries}, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST, content.encode())


def find_damage(folder: Path, item: str | None = None, *, sizes_only: bool = False) -> str | None:
    """What is wrong with the files of a folder, or None where every file is the one that was written.

    Args:
        folder: has manifest.json.
        item: a file or folder in it, to which the check is limited.
        sizes_only: compare no checksums, only which files there are and their sizes.

    Raises:
        FileNotFoundError: there is no manifest to tell by, but something else.
        OSError: the disk does not answer: that says nothing about the files.
    """
    if not any(folder.iterdir()):
        return "it is empty"
    try:
        if optional_file(folder, MANIFEST) is None:
            raise FileNotFoundError(folder / MANIFEST)
        files = read_json_object(folder / MANIFEST)["files"]
        expected = {name: (entry["bytes"], entry["blake2b"]) for name, entry in files.items() if _is_of(name, item)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    if not all(map(_stays_inside, expected)):
        return f"{MANIFEST} is not what was written: it names a file outside of the folder"
    # The cheap check of all files first: it names what is missing or cut short without reading what is whole.
    for name, (size, _) in expected.items():
        path = folder / name
        if not is_remote(folder) and _leaves(folder, path):
            return f"{name[:200]} is a link out of the folder"
        if not path.is_file():
            return f"{name[:200]} is missing"
        if (found := _size(path)) != size:
            return f"{name[:200]} has {found} bytes instead of {str(size)[:30]}"
    if sizes_only:
        return None
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, entry in zip(expected, pool.map(_entry, map(folder.joinpath, expected)), strict=True):
            if entry["blake2b"] != expected[name][1]:
                return f"{name} has another checksum than when it was written"
    return None


def _is_of(name: str, item: str | None) -> bool:
    return item is None or name == item or name.startswith(f"{item}/")


def _stays_inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")


def _leaves(folder: Path, path: Path) -> bool:
    """Whether a path leads out of a folder through symbolic links."""
    root = os.path.realpath(folder)
    return os.path.commonpath((root, os.path.realpath(path))) != root


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return {"bytes": file.tell(), "blake2b": digest}


def _size(path: Path) -> int:
    status = path.stat()
    return status.length if is_remote(path) else status.st_size
