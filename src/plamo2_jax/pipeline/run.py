"""Running what is not done of a pipeline, one stage after another."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from plamo2_jax.pipeline.graph import Graph
from plamo2_jax.pipeline.plan import Planner
from plamo2_jax.pipeline.state import State

Command = Callable[[list[str], Path | None], int]
"""Runs `plamo2` with arguments, what it prints going to a file if one is given; returns its exit status."""


@dataclasses.dataclass(frozen=True)
class Ran:
    """What became of one stage."""

    name: str
    why: str | None
    """Why it was run; None: it was done before."""
    seconds: float
    """What it took, now or then."""


def run(graph: Graph, names: Collection[str], force: Collection[str], command: Command) -> tuple[int, list[Ran]]:
    """Run the stages of a pipeline that are not done.

    A stage that was interrupted and can go on finds what it left; any other finds a clean place, since what was there before is set
    aside to HOME/.pipeline/stale. A stage whose inputs come out as they were is not run again.

    Args:
        graph: the stages.
        names: which of them, with all that they depend on.
        force: those to run in any case.
        command: runs a stage.

    Returns:
        The exit status of the stage that failed or was stopped, or 0; and what became of the stages until then.

    Raises:
        ValueError: another process runs this pipeline, or a record is damaged, or a stage did not make what it should.
    """
    state = State(graph.home)
    planner = Planner(graph, state, force)
    chosen = [name for name in graph.stages if name in names]
    ran: list[Ran] = []
    with state.lock():
        for number, name in enumerate(chosen, start=1):
            verdict, place = planner.judge(name), f"[{number}/{len(chosen)}] {name}"
            if verdict.why is None:
                if state.read(name) != verdict.record:
                    state.write(name, verdict.record)  # Files were written again as they had been.
                ran.append(Ran(name, None, verdict.record.seconds))
                continue
            stage = graph.stages[name]
            _say(f"{place}: {verdict.why}\n  plamo2 {stage.command}")
            if not verdict.goes_on:
                state.set_aside(name, graph.left_by(name))
            for path in graph.outputs(name):
                path.parent.mkdir(parents=True, exist_ok=True)
            state.write(name, verdict.record)
            begun = time.monotonic()
            status = command(stage.argv, stage.stdout)
            seconds = time.monotonic() - begun
            ran.append(Ran(name, verdict.why, seconds))
            if status:
                _say(f"{place}: ended with status {status} after {seconds:.1f} s; the same command goes on from there")
                return status, ran
            outputs = planner.made(name)
            state.write(name, dataclasses.replace(verdict.record, outputs=outputs, seconds=seconds))
            _say(f"{place}: done in {seconds:.1f} s")
    return 0, ran


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
