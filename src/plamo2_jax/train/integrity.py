"""Whether a checkpoint is what was written: a manifest of checksums, and setting aside what fails it.

Orbax and TensorStore notice a file that is missing or cut short, but not every flipped byte. So each checkpoint carries manifest.json:
the size and BLAKE2b digest of every file of its items, and what wrote them (configuration, code version, jax, mesh). Orbax calls for it
when all items are written and before the folder gets its final name, so a finished checkpoint has one; a kill before that leaves a
folder under a temporary name, which counts for nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

import plamo2_jax
from plamo2_jax.checkpoint import CHECKPOINTS, write_json
from plamo2_jax.json_input import read_json_object
from plamo2_jax.storage import files_below, is_remote

MANIFEST = "manifest.json"
DAMAGED = "damaged"
"""Suffix of a checkpoint that failed its check."""
_THREADS = 4


def write_manifest(step_folder: Path, items: Iterable[str], about: Mapping[str, Any]) -> None:
    """Write manifest.json into a checkpoint whose items are complete.

    Args:
        step_folder: the checkpoint.
        items: its items; Orbax still changes the files beside them.
        about: what else to record; JSON types.
    """
    files = sorted(path for item in items for path in files_below(step_folder / item))
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = dict(
            zip((str(path.relative_to(step_folder)) for path in files), pool.map(_entry, files), strict=True)
        )
    write_json(step_folder / MANIFEST, {**about, "files": entries})


def find_damage(step_folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is the one that was written.

    Raises:
        FileNotFoundError: there is no manifest to tell by, but something else.
        OSError: the disk does not answer: that says nothing about the checkpoint.
    """
    if not any(step_folder.iterdir()):
        return "it is empty"
    try:
        if not (step_folder / MANIFEST).exists():
            raise FileNotFoundError(step_folder / MANIFEST)
        files = read_json_object(step_folder / MANIFEST)["files"]
        expected = {name: (entry["bytes"], entry["blake2b"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    # The cheap check of all files first: it names what is missing or cut short without reading what is whole.
    for name, (size, _) in expected.items():
        path = step_folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := _size(path)) != size:
            return f"{name} has {found} bytes instead of {size}"
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, entry in zip(expected, pool.map(_entry, map(step_folder.joinpath, expected)), strict=True):
            if entry["blake2b"] != expected[name][1]:
                return f"{name} has another checksum than when it was written"
    return None


def set_aside(step_folder: Path, suffix: str) -> Path:
    """Rename a checkpoint so that nothing takes it for one; its files stay. Returns the new path, STEP.SUFFIX or STEP.SUFFIX-2, ..."""
    target, number = step_folder.with_name(f"{step_folder.name}.{suffix}"), 1
    while target.exists():
        number += 1
        target = step_folder.with_name(f"{step_folder.name}.{suffix}-{number}")
    step_folder.rename(target)
    return target


def damaged(folder: Path) -> list[str]:
    """Names of the checkpoints of a run that were set aside as damaged."""
    return sorted(path.name for path in (folder / CHECKPOINTS).glob(f"*.{DAMAGED}*"))


def provenance() -> dict[str, Any]:
    """What wrote a checkpoint: versions, and the commit where the package lies in a git work tree."""
    return {"plamo2_jax": plamo2_jax.__version__, "commit": _commit(), "jax": jax.__version__}


def _commit() -> str | None:
    """The commit that the package was imported from, with -dirty for uncommitted changes; None outside a work tree or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(plamo2_jax.__file__).resolve().parent
    # An installed package may lie inside somebody else's work tree.
    if not (here.parents[1] / "setup.cfg").is_file():
        return None
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return {"bytes": file.tell(), "blake2b": digest}


def _size(path: Path) -> int:
    status = path.stat()
    return status.length if is_remote(path) else status.st_size
