"""Checkpoints of training that are not what was written are set aside.

Each carries a manifest of checksums (`plamo2_jax.manifest`), which also says what wrote it: configuration, code version, jax, mesh. Orbax
calls for it when all items are written and before the folder gets its final name, so a finished checkpoint has one; a kill before that
leaves a folder under a temporary name, which counts for nothing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import jax

import plamo2_jax
from plamo2_jax.checkpoint import CHECKPOINTS
from plamo2_jax.json_input import read_json_object
from plamo2_jax.manifest import MANIFEST

DAMAGED = "damaged"
"""Suffix of a checkpoint that failed its check."""


def written_by(step_folder: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says of the code that wrote it: versions, commit, mesh and processes."""
    content = read_json_object(step_folder / MANIFEST)
    return {name: value for name, value in content.items() if name not in ("files", "config")}


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
