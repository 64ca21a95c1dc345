"""Which stage makes what another reads, and the order that follows."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from plamo2_jax.pipeline.stage import Pipeline, Stage
from plamo2_jax.pipeline.state import FOLDER
from plamo2_jax.storage import is_remote


@dataclasses.dataclass(frozen=True)
class Description:
    """What the config file of a stage's command says."""

    config: Any
    """All resolved values, JSON types."""
    paths: tuple[str, ...] = ()
    """What it reads."""
    words: tuple[str, ...] = ()
    """Other text in it, which may name a path."""
    outputs: tuple[Path, ...] = ()
    """What it makes."""
    file: str | None = None
    """The config file itself, whose values count and not its text."""
    resumes: bool = False
    """Whether the command goes on with what it left when it was interrupted."""


Describe = Callable[[list[str]], Description]
"""From the arguments of `plamo2` to what the config file in it says; an empty description where there is none."""


class Graph:
    """The stages of a pipeline with what they read and make. Paths are absolute, and belong to the stage with the longest output that
    is the path or one of its parents.

    Args:
        pipeline: the stages.
        describe: reads their config files.

    Raises:
        ValueError: an output is outside of the home or made twice, an input is made by nobody and does not exist, or stages go in a
            circle.
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
        """By name, each after those that make what it reads."""

    def describe(self, name: str) -> Description:
        """What the config file of a stage says now."""
        return self._describe(self.stages[name].argv)

    def outputs(self, name: str) -> list[Path]:
        """What a stage makes."""
        return [path for path, owner in self._owners.items() if owner == name]

    def owner(self, path: Path) -> str | None:
        """The stage that makes a path."""
        return next((self._owners[each] for each in (path, *path.parents) if each in self._owners), None)

    def makers(self, path: Path) -> list[str]:
        """The stages that make a path, or where none does, what lies in it."""
        owner = self.owner(path)
        if owner is not None:
            return [owner]
        return list(dict.fromkeys(name for output, name in self._owners.items() if path in output.parents))

    def before(self, name: str) -> list[str]:
        """The stages that make what a stage reads."""
        makers = dict.fromkeys(maker for path in self.inputs[name] for maker in self.makers(path))
        return [maker for maker in makers if maker != name]

    def ancestors(self, name: str) -> set[str]:
        """A stage and all that it depends on."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.add(each)
                waiting += self.before(each)
        return found

    def foreign(self, path: Path, name: str) -> bool:
        """Whether a path is not for this stage to touch: another's, or the pipeline's own."""
        return path == self.home / FOLDER or self.owner(path) != name

    def left_by(self, name: str) -> list[Path]:
        """What lies where a stage makes its outputs, without what others make in there."""
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
        if path != self.home and self.home not in path.parents:
            raise ValueError(
                f"stage {name} makes {shown(path)}, which is outside of the pipeline's home {shown(self.home)}"
            )
        if path == self.home / FOLDER or self.home / FOLDER in path.parents:
            raise ValueError(f"stage {name} makes {shown(path)}, which is where the pipeline keeps its records")
        other = self._owners.setdefault(path, name)
        if other != name:
            raise ValueError(f"stages {other} and {name} both make {shown(path)}: each output must have one stage")

    def _inputs(self, stage: Stage, description: Description) -> tuple[Path, ...]:
        found: dict[Path, None] = {}
        for text in (*map(str, stage.inputs), *description.paths):
            path = absolute(text)
            if is_remote(text):
                continue
            if not self.makers(path) and not os.path.exists(path) and not glob.glob(str(path)):
                raise ValueError(f"stage {stage.name} reads {text}, which does not exist and which no stage makes")
            found[path] = None
        for word in (*stage.argv, *description.words):
            text = word.rpartition("=")[2].partition("@")[0]
            if not text or text == description.file or is_remote(text) or ":" in text:
                continue
            path = absolute(text)
            if self.owner(path) == stage.name:
                continue
            if self.makers(path) or ("/" in text and os.path.exists(path)):
                found[path] = None
            elif "/" in text and self.home in path.parents:
                raise ValueError(
                    f"stage {stage.name} names {text}, which does not exist and which no stage makes; its own outputs are to be listed"
                )
        return tuple(path for path in found if self.owner(path) != stage.name)


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path by which to compare: links are not followed."""
    return Path(os.path.abspath(path))


def shown(path: Path) -> str:
    """A path as a user would write it, from the working directory where it lies below that."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _sorted(stages: Iterable[Stage], before: Callable[[str], list[str]]) -> list[Stage]:
    """Stages, each after those before it, and otherwise in the order given."""
    by_name = {stage.name: stage for stage in stages}
    done: dict[str, Stage] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = (*trail[trail.index(name) :], name)
            raise ValueError(
                f"stages go in a circle, each reading what the next makes: {' <- '.join(reversed(circle))}"
            )
        if name not in done:
            for each in before(name):
                visit(each, (*trail, name))
            done[name] = by_name[name]

    for name in by_name:
        visit(name, ())
    return list(done.values())
