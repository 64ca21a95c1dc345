"""The records of a pipeline in HOME/.pipeline: a JSON file for each stage, a lock, and old outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model_files import optional_file
from plamo2_jax.pipeline.files import Files
from plamo2_jax.storage import write_whole

FOLDER = ".pipeline"
STALE = "stale"


@dataclasses.dataclass
class Record:
    """The record of a stage, written when it starts and again when it has ended well."""

    key: dict[str, Any]
    """Everything that decides its outputs: version, command, config, and digests of its inputs."""
    external: dict[str, Files] = dataclasses.field(default_factory=dict)
    """Input → its files, for inputs that no stage makes."""
    outputs: Files | None = None
    """Files that it made, by path relative to the home; None: it started and has not ended well."""
    seconds: float = 0.0
    """Duration of its last run."""


class State:
    """The records of a pipeline.

    Args:
        home: the pipeline's folder. It is created when the first record is written.
    """

    def __init__(self, home: Path):
        self.folder = home / FOLDER

    def read(self, name: str) -> Record | None:
        """Return the record of a stage; None if there is none.

        Raises:
            ValueError: the file is damaged.
        """
        path = optional_file(self.folder, f"{name}.json")
        if path is None:
            return None
        try:
            fields = read_json_object(path)
            problem = _problem(fields)
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            raise PlamoError(f"{path} is not the record of a stage ({problem}); remove it to run the stage again")
        return Record(**fields)

    def write(self, name: str, record: Record) -> None:
        """Replace the record of a stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(dataclasses.asdict(record), ensure_ascii=False, indent=1)
        write_whole(self.folder / f"{name}.json", content.encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running this pipeline. The lock ends with the process, also if it is killed.

        Raises:
            ValueError: another process holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise PlamoError(
                    f"{self.folder.parent} is in use by another plamo2 pipeline (process {file.read().strip()}): wait until it ends, or "
                    "stop it"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def set_aside(self, name: str, paths: list[Path]) -> None:
        """Move old outputs of a stage, all below the home, to .pipeline/stale/NAME. Older ones there are deleted."""
        if not paths:
            return
        target = self.folder / STALE / name
        shutil.rmtree(target, ignore_errors=True)
        for path in paths:
            place = target / path.relative_to(self.folder.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, place)


def _problem(fields: Mapping[str, Any]) -> str | None:
    """Return why an object is not a Record, or None."""
    names = {field.name for field in dataclasses.fields(Record)}
    if unknown := sorted(fields.keys() - names):
        return f"unknown field {unknown[0][:40]!r}"
    if not isinstance(fields.get("key"), dict):
        return "key must be an object"
    external = fields.get("external", {})
    if not isinstance(external, dict) or not all(map(_is_files, external.values())):
        return "external must hold the files of each input"
    if fields.get("outputs") is not None and not _is_files(fields["outputs"]):
        return "outputs must be files by path"
    if type(fields.get("seconds", 0.0)) not in (int, float):
        return "seconds must be a number"
    return None


def _is_files(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(entry, list) and [type(part) for part in entry] == [int, int, str] for entry in value.values()
    )
