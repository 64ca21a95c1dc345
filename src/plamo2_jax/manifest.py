"""Manifests: the size and checksum of every file of a checkpoint, to detect damage.

Orbax and TensorStore detect missing and truncated files, but not every changed byte. So training checkpoints, and run folders written by
`checkpoint.save_model`, have a manifest.json with the size and BLAKE2b digest of every file. Folders without a manifest (from an older
version) are read without this check. Folders in Hugging Face format have no checksums, because safetensors has no field for them.
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
from plamo2_jax.model_files import leads_out, optional_file
from plamo2_jax.storage import files_below, is_remote, write_whole

MANIFEST = "manifest.json"
# Hashing releases the GIL. More threads would only wait for the disk.
_THREADS = min(16, os.cpu_count() or 1)


def write_manifest(folder: Path, items: Iterable[str], about: Mapping[str, Any] | None = None) -> None:
    """Write manifest.json into a folder whose items are complete.

    Args:
        items: Names of the files and subfolders to list.
        about: Further JSON values to record.
    """
    paths = [folder / item for item in items]
    files = sorted(file for path in paths for file in (files_below(path) if path.is_dir() else [path]))
    names = [file.relative_to(folder).as_posix() for file in files]
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = dict(zip(names, pool.map(_entry, files), strict=True))
    content = json.dumps({**(about or {}), "files": entries}, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST, content.encode())


def find_damage(folder: Path, item: str | None = None, *, sizes_only: bool = False) -> str | None:
    """Compare the files of a folder with its manifest. Return a description of the first damage, or None.

    Args:
        item: Name of a file or subfolder to check; None: all.
        sizes_only: Compare file names and sizes, but no checksums.

    Raises:
        FileNotFoundError: The folder has files, but no manifest.
        OSError: The disk cannot be read, so nothing is known about the files.
    """
    if not any(folder.iterdir()):
        return "it is empty"
    try:
        if optional_file(folder, MANIFEST) is None:
            raise FileNotFoundError(folder / MANIFEST)
        files = read_json_object(folder / MANIFEST)["files"]
        expected = {
            name: (entry["bytes"], entry["blake2b"])
            for name, entry in files.items()
            if item is None or name == item or name.startswith(f"{item}/")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    if not all(name and not name.startswith("/") and ".." not in name.split("/") for name in expected):
        return f"{MANIFEST} is damaged: it lists a file outside the folder"
    # First the cheap check of all files: it finds missing and truncated files without reading the others.
    for name, (size, _) in expected.items():
        path = folder / name
        if not is_remote(folder) and leads_out(folder, path):
            return f"{name[:200]} is a link out of the folder"
        if not path.is_file():
            return f"{name[:200]} is missing"
        if (found := _size(path)) != size:
            return f"{name[:200]} has {found} bytes, expected {str(size)[:30]}"
    if sizes_only:
        return None
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, entry in zip(expected, pool.map(_entry, map(folder.joinpath, expected)), strict=True):
            if entry["blake2b"] != expected[name][1]:
                return f"{name} does not match its checksum"
    return None


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return {"bytes": file.tell(), "blake2b": digest}


def _size(path: Path) -> int:
    status = path.stat()
    return status.length if is_remote(path) else status.st_size
