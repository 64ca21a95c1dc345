"""The graph of a pipeline: which stage makes what another stage reads, and the order of the stages."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.pipeline.stage import Pipeline, Stage
from plamo2_jax.pipeline.state import FOLDER
from plamo2_jax.storage import is_remote


@dataclasses.dataclass(frozen=True)
class Description:
    """The inputs and outputs of a stage that the config file of its command names."""

    config: Any
    """The resolved config as JSON types; None if the command has no config file."""
    paths: tuple[str, ...] = ()
    """Paths that it reads: the config's fields of type Path."""
    words: tuple[str, ...] = ()
    """Other text values with a slash. `Stage.inputs` must list those that are paths."""
    outputs: tuple[Path, ...] = ()
    """Paths that it makes."""
    others: tuple[Path, ...] = ()
    """Paths that are neither, such as the folder that holds the outputs, and caches on the local disk."""
    file: str | None = None
    """The config file. A change of its text without a change of its values does not rerun the stage."""
    resumes: bool = False
    """Whether the command resumes after an interruption."""


Describe = Callable[[list[str]], Description]
"""Given the arguments of `plamo2`, returns the description of the config file; an empty one if there is no config file."""


class Graph:
    """The stages of a pipeline, and the paths that they read and make.

    Paths are absolute. A path belongs to the stage whose output is the path or its nearest parent.

    Args:
        pipeline: the stages.
        describe: reads their config files.

    Raises:
        PlamoError: an output is outside of the home or has two stages; an input does not exist and no stage makes it; a command names a
            path that its stage does not declare; or stages depend on each other in a circle.
    """

    def __init__(self, pipeline: Pipeline, describe: Describe):
        self.home = absolute(pipeline.home)
        self._describe = describe
        self._owners: dict[Path, str] = {}
        descriptions = {stage.name: describe(stage.argv) for stage in pipeline.stages}
        for stage in pipeline.stages:
            for path in self._outputs(stage, descriptions[stage.name]):
                self._own(path, stage.name)
        self.inputs = {stage.name: self._inputs(stage, descriptions[stage.name]) for stage in pipeline.stages}
        self.stages = {stage.name: stage for stage in _sorted(pipeline.stages, self.before)}
        """Stages by name, each after the stages that make its inputs."""

    def describe(self, name: str) -> Description:
        """Read the config file of a stage again."""
        return self._describe(self.stages[name].argv)

    def outputs(self, name: str) -> list[Path]:
        """Return the paths that a stage makes."""
        return [path for path, owner in self._owners.items() if owner == name]

    def owner(self, path: Path) -> str | None:
        """Return the stage that makes a path, or None."""
        return next((self._owners[each] for each in (path, *path.parents) if each in self._owners), None)

    def makers(self, path: Path) -> list[str]:
        """Return the stage that makes a path; if there is none, the stages that make something inside it."""
        owner = self.owner(path)
        if owner is not None:
            return [owner]
        return list(dict.fromkeys(name for output, name in self._owners.items() if path in output.parents))

    def before(self, name: str) -> list[str]:
        """Return the stages that make the inputs of a stage."""
        makers = dict.fromkeys(maker for path in self.inputs[name] for maker in self.makers(path))
        return [maker for maker in makers if maker != name]

    def ancestors(self, name: str) -> set[str]:
        """Return a stage and all stages that it depends on."""
        found = {name}
        for each in reversed(self.stages):
            if each in found:
                found.update(self.before(each))
        return found

    def foreign(self, path: Path, name: str) -> bool:
        """Return whether a path belongs to another stage or to the pipeline's records."""
        return path == self.home / FOLDER or self.owner(path) != name

    def left_by(self, name: str) -> list[Path]:
        """Return the files and folders at the outputs of a stage, without the outputs of other stages inside them."""
        found = []

        def visit(path: Path) -> None:
            if self.foreign(path, name) or not os.path.lexists(path):
                return
            if path == self.home or any(path in output.parents for output in (*self._owners, self.home / FOLDER)):
                for child in sorted(path.iterdir()):
                    visit(child)
            else:
                found.append(path)

        for output in self.outputs(name):
            visit(output)
        return found

    def _outputs(self, stage: Stage, description: Description) -> Iterator[Path]:
        yield from map(absolute, (*stage.outputs, *description.outputs))
        if stage.stdout is not None:
            yield absolute(stage.stdout)

    def _own(self, path: Path, name: str) -> None:
        if not path.is_relative_to(self.home):
            raise PlamoError(
                f"stage {name} writes {shown(path)}, which is outside of the pipeline's home "
                f"{shown(self.home)}: all outputs must be in home"
            )
        if path.is_relative_to(self.home / FOLDER):
            raise PlamoError(
                f"stage {name} writes {shown(path)}, where the pipeline stores its records: choose another path"
            )
        other = self._owners.setdefault(path, name)
        if other != name:
            raise PlamoError(f"stages {other} and {name} both write {shown(path)}: only one stage may write an output")

    def _inputs(self, stage: Stage, description: Description) -> tuple[Path, ...]:
        found: dict[Path, None] = {}
        for text in (*map(str, stage.inputs), *description.paths):
            path = absolute(_without_step(text))
            # Bundled and prepared data sets are compared by their names, which are in the command.
            if is_remote(text) or text.startswith(("bundled:", "tfds:")):
                continue
            if not self.makers(path) and not os.path.exists(path) and not glob.glob(str(path), recursive=True):
                raise PlamoError(
                    f"stage {stage.name} reads {text}, which does not exist and is not an output of any stage: "
                    "correct the path"
                )
            found[path] = None
        others = set(map(absolute, description.others))
        declared = {*found, *(path for path, owner in self._owners.items() if owner == stage.name)}
        for word in (*stage.argv[1:], *description.words):
            text = _without_step(word.rpartition("=")[2])
            path = absolute(text)
            if not text or text == description.file or is_remote(text) or ":" in text or path in others:
                continue
            if self._names_a_path(text, path) and declared.isdisjoint((path, *path.parents)):
                known = self.makers(path) or os.path.exists(path)
                missing = "" if known else ", does not exist, and is not an output of any stage"
                raise PlamoError(
                    f"stage {stage.name} names {text}, which is not declared as an input or output{missing}: "
                    "correct the path, or add it to Stage.inputs or Stage.outputs"
                )
        return tuple(path for path in found if self.owner(path) != stage.name)

    def _names_a_path(self, text: str, path: Path) -> bool:
        """Return whether a word names what a stage makes, a path in the home, or a file or folder that exists."""
        return bool(self.makers(path)) or ("/" in text and (path.is_relative_to(self.home) or os.path.exists(path)))


def _without_step(text: str) -> str:
    """Return RUN of RUN@STEP."""
    return text.partition("@")[0]


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path without `..`. Links are not followed."""
    return Path(os.path.abspath(path))


def shown(path: Path) -> str:
    """Return a path relative to the working directory; the absolute path if it is outside."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _sorted(stages: Iterable[Stage], before: Callable[[str], list[str]]) -> list[Stage]:
    """Sort the stages so that each follows those it depends on; otherwise keep the given order."""
    by_name = {stage.name: stage for stage in stages}
    done: dict[str, Stage] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = (*trail[trail.index(name) :], name)
            raise PlamoError(f"the stages have a cyclic dependency: {' <- '.join(reversed(circle))}")
        if name not in done:
            for each in before(name):
                visit(each, (*trail, name))
            done[name] = by_name[name]

    for name in by_name:
        visit(name, ())
    return list(done.values())
