"""What of a pipeline is to be run, and why."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import plamo2_jax
from plamo2_jax.pipeline.files import Files, counts, digest, entry, scan
from plamo2_jax.pipeline.graph import Graph, shown
from plamo2_jax.pipeline.state import Record, State


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to become of a stage."""

    why: str | None
    """Why it is to be run; None: it is done."""
    goes_on: bool = False
    """Whether it is to go on with what it left when it was interrupted."""
    record: Record | None = None
    """What is known of it if it is done; what is written down when it begins, if that can be said yet."""


class Planner:
    """Judges stages by their records.

    Args:
        graph: the stages.
        state: their records.
        force: names of stages to run whatever is known of them.
    """

    def __init__(self, graph: Graph, state: State, force: Collection[str] = ()):
        self._graph, self._state, self._force = graph, state, set(force)

    def plan(self, names: Collection[str]) -> dict[str, Verdict]:
        """The verdicts of stages, those they depend on among them. Where a stage before is to be run, what comes of it is not known:
        the stage follows, though it will be passed over if its inputs come out as they were.
        """
        verdicts: dict[str, Verdict] = {}
        for name in self._graph.stages:
            if name in names:
                first = next((each for each in self._graph.before(name) if verdicts[each].why is not None), None)
                verdicts[name] = self.judge(name) if first is None else Verdict(f"follows from {first}")
        return verdicts

    def judge(self, name: str) -> Verdict:
        """The verdict of a stage of which all before it are done."""
        before = self._state.read(name)
        now = Record(*self._key(name, before))
        if before is None:
            return Verdict("new", record=now)
        if (change := _first_change(before.key, now.key)) is not None:
            return Verdict(change, record=now)
        if before.outputs is None:
            goes_on = self._graph.describe(name).resumes
            return Verdict(f"did not end: {'goes on' if goes_on else 'begins anew'}", goes_on, now)
        if name in self._force:
            return Verdict("asked for", record=now)
        outputs, change = self._look(before.outputs)
        if change is not None:
            return Verdict(change, record=now)
        return Verdict(None, record=dataclasses.replace(now, outputs=outputs, seconds=before.seconds))

    def made(self, name: str) -> Files:
        """What a stage that has ended made, by path from the home.

        Raises:
            ValueError: an output is not there.
        """
        graph = self._graph
        outputs, found = graph.outputs(name), {}

        def skip(path: Path) -> bool:
            return path not in outputs and (not counts(path.name) or graph.foreign(path, name))

        for path in outputs:
            files = scan(path, {}, skip)
            if not files:
                raise ValueError(f"stage {name} ended well but did not make {shown(path)}")
            root = path.relative_to(graph.home)
            found |= {(root / inner).as_posix(): figures for inner, figures in files.items()}
        return found

    def _key(self, name: str, before: Record | None) -> tuple[dict[str, Any], dict[str, Files]]:
        """All that decides a stage's outputs, and the files that no stage makes in it."""
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
        """What stages made in a folder, by path from the home; all that they made where the path is a pattern."""
        records = [self._state.read(maker) for maker in makers if maker != reader]
        files = {name: figures for record in records if record for name, figures in (record.outputs or {}).items()}
        within = {name: figures for name, figures in files.items() if _is_below(self._graph.home / name, path)}
        return within or files

    def _look(self, recorded: Files) -> tuple[Files, str | None]:
        """The files that were made as they are now, and what is wrong with them."""
        found: Files = {}
        for name, figures in recorded.items():
            path = self._graph.home / name
            if not path.is_file():
                return found, f"output {shown(path)} is missing"
            found[name] = entry(path, figures)
            if found[name][2] != figures[2]:
                return found, f"output {shown(path)} changed"
        return found, None


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _scan_given(path: Path, known: Files) -> Files:
    """The files of a file, a folder or a pattern."""
    if path.exists():
        return scan(path, known)
    return {name: entry(Path(name), known.get(name)) for name in sorted(glob.glob(str(path))) if Path(name).is_file()}


def _first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between two keys, in words; None where they are the same."""
    if before["version"] != now["version"]:
        return f"plamo2-jax {before['version']} made it, this is {now['version']}"
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
    """The first value that differs, `a.b: OLD, now NEW`."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    return f"{name}: {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{hashlib.sha256(text.encode()).hexdigest()[:12]}..."
