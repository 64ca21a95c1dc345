"""Decide which stages of a pipeline run, and why."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import plamo2_jax
from plamo2_jax.errors import PlamoError
from plamo2_jax.pipeline.files import Files, counts, digest, entry, is_log, scan
from plamo2_jax.pipeline.graph import Graph, shown
from plamo2_jax.pipeline.state import Record, State


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether and why a stage runs."""

    why: str | None
    """Why it runs; None: it is finished."""
    resumes: bool = False
    """Whether it resumes after an interruption."""
    record: Record | None = None
    """Its record if it is finished, else the record to write when it starts; None: its inputs are not known yet."""


class Planner:
    """Decides from the records which stages run.

    Args:
        graph: the stages.
        state: their records.
        force: names of stages to run even if they are finished.
    """

    def __init__(self, graph: Graph, state: State, force: Collection[str] = ()):
        self._graph, self._state, self._force = graph, state, set(force)

    def plan(self, names: Collection[str]) -> dict[str, Verdict]:
        """Return the verdicts of stages, which must include their dependencies.

        If a stage runs, the inputs of the stages that depend on it are not known yet. The plan lists them as to run; they are skipped later
        if their inputs come out unchanged.
        """
        verdicts: dict[str, Verdict] = {}
        for name in self._graph.stages:
            if name in names:
                first = next((each for each in self._graph.before(name) if verdicts[each].why is not None), None)
                verdicts[name] = self.judge(name) if first is None else Verdict(f"follows from {first}")
        return verdicts

    def judge(self, name: str) -> Verdict:
        """Return the verdict of a stage whose dependencies are all finished."""
        before = self._state.read(name)
        now = Record(*self._key(name, before))
        if before is None:
            return Verdict("new", record=now)
        if (change := _first_change(before.key, now.key)) is not None:
            return Verdict(change, record=now)
        if before.outputs is None:
            resumes = self._graph.describe(name).resumes
            return Verdict(f"interrupted: {'resumes' if resumes else 'starts again'}", resumes, now)
        if name in self._force:
            return Verdict("forced", record=now)
        outputs, change = self._look(before.outputs)
        if change is not None:
            return Verdict(change, record=now)
        return Verdict(None, record=dataclasses.replace(now, outputs=outputs, seconds=before.seconds))

    def made(self, name: str) -> Files:
        """Fingerprint the outputs of a stage that has succeeded, by path relative to the home.

        Raises:
            PlamoError: an output does not exist.
        """
        graph = self._graph
        outputs, found = graph.outputs(name), {}

        def skip(path: Path) -> bool:
            return path not in outputs and (not counts(path.name) or graph.foreign(path, name))

        for path in outputs:
            files = scan(path, {}, skip)
            if not files:
                raise PlamoError(f"stage {name} succeeded but did not write {shown(path)}: correct Stage.outputs")
            root = path.relative_to(graph.home)
            found |= {(root / inner).as_posix(): figures for inner, figures in files.items()}
        return found

    def _key(self, name: str, before: Record | None) -> tuple[dict[str, Any], dict[str, Files]]:
        """Return everything that decides a stage's outputs, and the files of inputs that no stage makes."""
        stage, external = self._graph.stages[name], {}
        inputs = {}
        for path in self._graph.inputs[name]:
            makers = self._graph.makers(path)
            if not makers:
                known = {} if before is None else before.external.get(shown(path), {})
                external[shown(path)] = _scan_given(path, known)
                inputs[shown(path)] = digest(external[shown(path)])
            else:
                inputs[shown(path)] = digest(self._made_below(path, makers, name))
        key = {
            "version": plamo2_jax.__version__,
            "command": stage.command,
            "config": self._graph.describe(name).config,
            "inputs": inputs,
        }
        return key, external

    def _made_below(self, path: Path, makers: list[str], reader: str) -> Files:
        """Return the files that stages made at a path, by path relative to the home; all their files if the path is a pattern."""
        records = [self._state.read(maker) for maker in makers if maker != reader]
        files = {name: figures for record in records if record for name, figures in (record.outputs or {}).items()}
        within = {name: figures for name, figures in files.items() if (self._graph.home / name).is_relative_to(path)}
        return within or files

    def _look(self, recorded: Files) -> tuple[Files, str | None]:
        """Fingerprint recorded outputs again; return them and the first change."""
        found: Files = {}
        for name, figures in recorded.items():
            path = self._graph.home / name
            if not path.is_file():
                return found, f"output {shown(path)} is missing"
            found[name] = entry(path, figures)
            if found[name][2] != figures[2]:
                return found, f"output {shown(path)} changed"
        return found, None


def _scan_given(path: Path, known: Files) -> Files:
    """Fingerprint a file, a folder or the files of a pattern, without the logs of runs."""
    if path.exists():
        return scan(path, known, skip=lambda each: each != path and is_log(each))
    files = (name for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file())
    return {name: entry(Path(name), known.get(name)) for name in files}


def _first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first difference between two keys in words; None if they are equal."""
    if before["version"] != now["version"]:
        return f"written by plamo2-jax {before['version']}, now {now['version']}"
    if before["command"] != now["command"]:
        return "its command changed"
    if before["config"] != now["config"]:
        return f"config changed: {_difference(before['config'], now['config'])}"
    old, new = before["inputs"], now["inputs"]
    for path in {**old, **new}:
        if old.get(path) != new.get(path):
            return f"input {path} {'changed' if path in old and path in new else 'is ' + ('new' if path in new else 'gone')}"
    return None


def _difference(before: Any, now: Any, name: str = "") -> str:
    """Return the first value that differs as `a.b: OLD, now NEW`."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    return f"{name}: {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{hashlib.sha256(text.encode()).hexdigest()[:12]}..."
