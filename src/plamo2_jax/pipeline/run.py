"""Run the unfinished stages of a pipeline, one after another."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from plamo2_jax.errors import PlamoError
from plamo2_jax.pipeline.graph import Graph
from plamo2_jax.pipeline.plan import Planner
from plamo2_jax.pipeline.state import Progress, State, Status

Command = Callable[[list[str], Path | None], int]
"""Runs `plamo2` with arguments and writes its standard output to a file if one is given; returns the exit status."""


@dataclasses.dataclass(frozen=True)
class Ran:
    """The result of one stage."""

    name: str
    why: str | None
    """Why it ran; None: it was skipped."""
    seconds: float
    """Duration of this run, or of its last run if it was skipped."""


def run(graph: Graph, names: Collection[str], force: Collection[str], command: Command) -> tuple[int, list[Ran]]:
    """Run the unfinished stages of a pipeline.

    The outputs of an interrupted stage that can resume are kept. The old outputs of any other stage are first moved to
    HOME/.pipeline/stale. A stage is skipped if its inputs come out unchanged.

    Args:
        graph: the stages.
        names: stages to run, which must include their dependencies.
        force: stages to run even if they are finished.
        command: runs a stage.

    Returns:
        The exit status of the stage that failed or was stopped, or 0; and the results of the stages until then.

    Raises:
        PlamoError: another process runs this pipeline, a record is damaged, or a stage did not make an output.
    """
    state = State(graph.home)
    planner = Planner(graph, state, force)
    chosen = [name for name in graph.stages if name in names]
    ran: list[Ran] = []
    progress = {name: Progress(graph.before(name), stage.command) for name, stage in graph.stages.items()}

    def mark(name: str, status: Status, seconds: float = 0.0) -> None:
        progress[name].status, progress[name].seconds = status, seconds
        # A call that runs nothing changes no file.
        if any(each.why is not None for each in ran) or status == "running":
            state.write_progress(progress)

    with state.lock():
        for number, name in enumerate(chosen, start=1):
            verdict, place = planner.judge(name), f"[{number}/{len(chosen)}] {name}"
            if verdict.why is None:
                if state.read(name) != verdict.record:
                    state.write(name, verdict.record)  # A file has a new modification time but the same content.
                ran.append(Ran(name, None, verdict.record.seconds))
                mark(name, "skipped", verdict.record.seconds)
                continue
            stage = graph.stages[name]
            _say(f"{place}: {verdict.why}\n  plamo2 {stage.command}")
            if not verdict.resumes:
                state.set_aside(name, graph.left_by(name))
            for path in graph.outputs(name):
                path.parent.mkdir(parents=True, exist_ok=True)
            state.write(name, verdict.record)
            mark(name, "running")
            begun = time.monotonic()
            status = command(stage.argv, stage.stdout)
            seconds = time.monotonic() - begun
            ran.append(Ran(name, verdict.why, seconds))
            if status:
                mark(name, "failed", seconds)
                _say(f"{place}: ended with status {status} after {seconds:.1f} s; run the same command again to resume")
                return status, ran
            try:
                outputs = planner.made(name)
            except PlamoError:
                mark(name, "failed", seconds)
                raise
            state.write(name, dataclasses.replace(verdict.record, outputs=outputs, seconds=seconds))
            mark(name, "done", seconds)
            _say(f"{place}: done in {seconds:.1f} s")
    return 0, ran


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
