"""The records of a pipeline in HOME/.pipeline: a JSON file for each stage, the progress of all, a lock, and old outputs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, get_args

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model_files import optional_file
from plamo2_jax.pipeline.files import Files
from plamo2_jax.storage import lock_folder, write_whole

FOLDER = ".pipeline"
PROGRESS = ".progress"
"""File in FOLDER. The names of the records end with .json."""


@dataclasses.dataclass
class Record:
    """The record of a stage, written when it starts and again when it has succeeded."""

    key: dict[str, Any]
    """Everything that decides its outputs: version, command, config, and digests of its inputs."""
    external: dict[str, Files] = dataclasses.field(default_factory=dict)
    """Input → its files, for inputs that no stage makes."""
    outputs: Files | None = None
    """Files that it made, by path relative to the home; None: it has started and not succeeded."""
    seconds: float = 0.0
    """Duration of its last run."""


Status = Literal["waiting", "running", "done", "skipped", "failed"]


@dataclasses.dataclass
class Progress:
    """A stage in the last call of the pipeline that ran a stage."""

    before: list[str]
    """The stages that make its inputs."""
    command: str
    status: Status = "waiting"
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
            PlamoError: the file is damaged.
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
            raise PlamoError(f"{path} is not the record of a stage ({problem}): remove it to run the stage again")
        return Record(**fields)

    def write(self, name: str, record: Record) -> None:
        """Replace the record of a stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(dataclasses.asdict(record), ensure_ascii=False, indent=1)
        write_whole(self.folder / f"{name}.json", content.encode())

    def read_progress(self) -> dict[str, Progress]:
        """Return the stages of the last call that ran a stage, each after those it depends on; {} if there was none.

        Raises:
            PlamoError: the file is damaged.
        """
        path = optional_file(self.folder, PROGRESS)
        if path is None:
            return {}
        stages = read_json_object(path)
        if not all(map(_is_progress, stages.values())) or any(
            set(fields["before"]) - set(list(stages)[:i]) for i, fields in enumerate(stages.values())
        ):
            raise PlamoError(f"{path} is not the progress of a pipeline: remove it; plamo2 pipeline writes it again")
        return {name: Progress(**fields) for name, fields in stages.items()}

    def write_progress(self, stages: Mapping[str, Progress]) -> None:
        """Replace the progress of all stages."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {name: dataclasses.asdict(stage) for name, stage in stages.items()}
        write_whole(self.folder / PROGRESS, json.dumps(content, ensure_ascii=False, indent=1).encode())

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from running this pipeline. The lock ends with the process, also if it is killed.

        Raises:
            PlamoError: another process holds the lock.
        """
        return lock_folder(self.folder)

    def set_aside(self, name: str, paths: list[Path]) -> None:
        """Move old outputs of a stage, all below the home, to .pipeline/stale/NAME. Older ones there are deleted."""
        if not paths:
            return
        target = self.folder / "stale" / name
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


def _is_progress(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {field.name for field in dataclasses.fields(Progress)}:
        return False
    before, seconds = value["before"], value["seconds"]
    return (
        isinstance(before, list)
        and all(isinstance(name, str) for name in before)
        and isinstance(value["command"], str)
        and value["status"] in get_args(Status)
        and type(seconds) in (int, float)
        and math.isfinite(seconds)
    )


def _is_files(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(entry, list) and [type(part) for part in entry] == [int, int, str] for entry in value.values()
    )
