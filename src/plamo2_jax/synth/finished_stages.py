"""Finished stages: the output of a stage is written once, and again only if its inputs or settings have changed.

OUTPUT/stages/NAME.json     fingerprint of a finished stage: key of its inputs and settings, sizes and hash of its output, counts

The output appears complete, by a rename, and the fingerprint after it. A stage that was interrupted between the two runs again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plamo2_jax
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.files import find_files
from plamo2_jax.storage import files_below, new_folder, write_whole
from plamo2_jax.synth.config import digest

_VERSION = 1
_NAMED = ("bundled:", "tfds:")
"""Raise this when a stage of this package gives another output for the same inputs."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished stage."""

    key: str
    """Hash of everything that determines the output."""
    digest: str
    """Hash of the output."""
    files: dict[str, int]
    """Size in bytes by path below the folder of the stage."""
    content: dict[str, Any]
    """Counts of the stage."""


class Stages:
    """The stages after generation.

    Args:
        output: OUTPUT.
    """

    def __init__(self, output: Path):
        self._output = output
        self.skipped: list[str] = []
        """Names of the stages that were not run, because their inputs and settings are unchanged."""

    def run(
        self, name: str, folder: Path, inputs: Any, write: Callable[[Path], dict[str, Any]], *, whole: bool = False
    ) -> Finished:
        """Run a stage unless it is finished.

        Args:
            name: name of the stage.
            folder: folder of its output; an existing one is replaced.
            inputs: everything that determines the output, as dataclasses and JSON values.
            write: writes the output into an empty folder, and returns counts as JSON.
            whole: `write` creates `folder` itself, by a rename.
        """
        key, path = digest([_VERSION, plamo2_jax.__version__, name, inputs]), self._output / "stages" / f"{name}.json"
        stored = _read(path)
        if stored is not None and stored.key == key and stored.files == _sizes(folder):
            self.skipped.append(name)
            return stored
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if whole:
            content = write(folder)
        else:
            with new_folder(folder, replace=True) as partial:
                content = write(partial)
        found = Finished(key, hash_of(sorted(files_below(folder))), _sizes(folder), content)
        write_whole(path, (json.dumps(dataclasses.asdict(found), ensure_ascii=False) + "\n").encode())
        return found


def hash_of(files: Iterable[Path]) -> str:
    """Return a hash of the contents of files."""
    total = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


def state_of(inputs: Iterable[str | Path]) -> list[Any]:
    """Return names, sizes and times of the files of inputs. Bundled and prepared data sets are identified by their names."""
    inputs = list(map(str, inputs))
    found: list[Any] = [spec for spec in inputs if spec.startswith(_NAMED)]
    for path in files_of(inputs):
        status = path.stat()
        found.append([str(path), status.st_size, status.st_mtime_ns])
    return found


def files_of(inputs: Iterable[str]) -> list[Path]:
    """Return the files of inputs. Bundled and prepared data sets have none."""
    return [path for spec in inputs if not spec.startswith(_NAMED) for path in find_files(spec, ReadReport())]


def _sizes(folder: Path) -> dict[str, int] | None:
    if not folder.is_dir():
        return None
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files_below(folder))}


def _read(path: Path) -> Finished | None:
    try:
        return Finished(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
