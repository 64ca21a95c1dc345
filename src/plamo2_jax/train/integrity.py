"""Detection of damaged checkpoints, which are renamed and not used.

Each checkpoint has a manifest with checksums (`plamo2_jax.manifest`), which also records what wrote it: configuration, code version, jax
and mesh. It is written when all items are complete, before the folder gets its final name. A run that is killed earlier leaves a folder
with a temporary name, which is ignored.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import jax

import plamo2_jax
from plamo2_jax import manifest
from plamo2_jax.checkpoint import CHECKPOINTS
from plamo2_jax.json_input import read_json_object
from plamo2_jax.train import processes

DAMAGED = "damaged"
"""Suffix of the name of a damaged checkpoint."""


def find_damage(step_folder: Path) -> tuple[str | None, bool]:
    """Return a description of the first damage of a checkpoint (None if it is intact), and whether it has a manifest.

    Only the first process reads the files. All processes get the same result.
    """
    found = (None, True)
    if jax.process_index() == 0:
        try:
            found = (manifest.find_damage(step_folder), True)
        except FileNotFoundError:
            found = (None, False)
    return tuple(processes.from_first(found))


def written_by(step_folder: Path) -> dict[str, Any]:
    """Return the origin of a checkpoint from its manifest: versions, commit, mesh and processes."""
    content = read_json_object(step_folder / manifest.MANIFEST)
    return {name: value for name, value in content.items() if name not in ("files", "config")}


def set_aside(step_folder: Path, suffix: str) -> Path:
    """Rename a checkpoint so that it is no longer used. Return the new path, STEP.SUFFIX or STEP.SUFFIX-2, ..."""
    target, number = step_folder.with_name(f"{step_folder.name}.{suffix}"), 1
    while target.exists():
        number += 1
        target = step_folder.with_name(f"{step_folder.name}.{suffix}-{number}")
    step_folder.rename(target)
    return target


def damaged(folder: Path) -> list[str]:
    """Return the names of the damaged checkpoints that were set aside."""
    return sorted(path.name for path in (folder / CHECKPOINTS).glob(f"*.{DAMAGED}*"))


def provenance() -> dict[str, Any]:
    """Return the description of the code for the manifest of a checkpoint: versions and commit."""
    return {"plamo2_jax": plamo2_jax.__version__, "commit": _commit(), "jax": jax.__version__}


def _commit() -> str | None:
    """Return the git commit of this package, with -dirty for uncommitted changes; None outside a work tree or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(plamo2_jax.__file__).resolve().parent
    # An installed package may be inside the work tree of another project.
    if not (here.parents[1] / "setup.cfg").is_file():
        return None
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
