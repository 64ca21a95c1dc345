"""The journal of a sweep: a folder with the finished compilations, from which an interrupted sweep resumes.

    sweep.json           the configuration, the slice and the versions that the results belong to
    N.draft.json.gz      a program without machine code
    N.complete.json.gz   the plan of a complete compilation, and the costs of its operations

N is a digest of the options of the point.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import plamo2_jax
from plamo2_jax.checkpoint import write_json
from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.compiler import libtpu_version
from plamo2_jax.plan.costs import Cost
from plamo2_jax.plan.draft import Draft
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.step import StepPlan
from plamo2_jax.plan.wire import decode, encode
from plamo2_jax.train.config import to_json

# Fields that a sweep chooses itself.
_CHOSEN = ("mesh", "accumulation", "remat", "loss_chunk", "sharding")


class Journal:
    """The journal in a folder, which is created if it does not exist.

    Raises:
        PlamoError: The folder has the journal of another sweep, or is not a folder.
    """

    def __init__(self, folder: Path, request: Request) -> None:
        self._folder = folder
        config = {name: value for name, value in to_json(request.config).items() if name not in _CHOSEN}
        slices = request.config.mesh.slices
        header = {"config": config, "topology": request.topology, "slices": slices, "kernels": request.kernels}
        versions = {"plamo2_jax": plamo2_jax.__version__, "jax": jax.__version__, "libtpu": libtpu_version()}
        header = json.loads(json.dumps(header | versions))
        path = folder / "sweep.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise PlamoError(
                f"--journal {folder} cannot be used ({error}): give a folder that can be written"
            ) from error
        if found is None:
            write_json(path, header)
        elif found != header:
            differing = sorted(key for key in header if found.get(key) != header[key])
            raise PlamoError(
                f"--journal {folder} has a sweep with a different {' and '.join(differing)}: choose another "
                "folder, or delete it"
            )

    def draft(self, options: str) -> Draft | None:
        """Return the draft of a point if there is one."""
        return self._read(options, "draft")

    def complete(self, options: str) -> tuple[StepPlan, list[Cost]] | None:
        """Return plan and costs of a point that is compiled completely; None if it is not."""
        found = self._read(options, "complete")
        return None if found is None else (found[0], found[1])

    def add_draft(self, options: str, draft: Draft) -> None:
        """Store a draft."""
        self._write(options, "draft", draft)

    def add_complete(self, options: str, plan: StepPlan, costs: list[Cost]) -> None:
        """Store the results of a complete compilation."""
        self._write(options, "complete", [plan, costs])

    def costs(self) -> Iterator[Cost]:
        """Yield the costs of all complete compilations."""
        for path in sorted(self._folder.glob("*.complete.json.gz")):
            yield from _load(path)[1]

    def _path(self, options: str, stage: str) -> Path:
        return self._folder / f"{hashlib.sha256(options.encode()).hexdigest()[:12]}.{stage}.json.gz"

    def _read(self, options: str, stage: str) -> Any:
        path = self._path(options, stage)
        return _load(path) if path.exists() else None

    def _write(self, options: str, stage: str, value: Any) -> None:
        path = self._path(options, stage)
        partial = path.with_suffix(".partial")
        with gzip.open(partial, "wt", encoding="utf-8") as file:
            json.dump(encode(value), file)
        os.replace(partial, path)


def _load(path: Path) -> Any:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return decode(json.load(file))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise PlamoError(
            f"{path} is damaged ({error}): delete it, and the sweep compiles this candidate again"
        ) from error
