"""Compare train steps of a run on different meshes, with different micro-batches, remat policies and loss chunks.

Each candidate is compiled up to the assignment of buffers (draft.py), which takes seconds and gives its memory and collectives. Then the
best candidates are compiled completely. The costs of their operations improve the estimates of all others (costs.py), so the order is
computed again after each.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan import draft, step
from plamo2_jax.plan.candidates import Candidate
from plamo2_jax.plan.costs import Costs
from plamo2_jax.plan.draft import Draft
from plamo2_jax.plan.journal import Journal
from plamo2_jax.plan.report import step_time
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.step import StepPlan
from plamo2_jax.plan.worker import Worker


@dataclasses.dataclass(frozen=True)
class Point:
    """The result of one candidate."""

    options: str
    plan: StepPlan
    complete: bool
    """Whether it was compiled completely. Otherwise its cycles are estimated from other points."""


class Sweep:
    """A sweep with its results so far."""

    def __init__(self, request: Request, journal: Journal, minutes: float | None = None) -> None:
        """Read the journal.

        Args:
            request: The run, the slice and the kernels.
            minutes: No compilation begins later than this; None: no limit.
        """
        self._request, self._journal = request, journal
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._costs = Costs(journal.costs())
        self._drafts: dict[str, Draft] = {}
        self._complete: dict[str, StepPlan] = {}
        self._refused: dict[str, str] = {}
        self._code_bytes = 0

    @property
    def refused(self) -> dict[str, str]:
        """Options → why the run cannot be compiled this way."""
        return self._refused

    def out_of_time(self) -> bool:
        """Return whether no further compilation may begin."""
        return self._end is not None and time.monotonic() >= self._end

    def compile_drafts(self, candidates: Sequence[Candidate], done: Callable[[], None]) -> None:
        """Compile each candidate up to the assignment of buffers, or read it from the journal; call `done` after each."""
        for candidate in candidates:
            finished = self._journal.complete(candidate.options)
            if finished is not None:
                self._keep(candidate.options, finished[0])
            found = self._journal.draft(candidate.options)
            if found is None:
                if self.out_of_time():
                    return
                try:
                    with Worker() as worker:
                        found = worker.call(draft.compile_draft, self._with(candidate))
                except (PlamoError, RuntimeError) as error:
                    # One candidate that cannot be compiled does not end the sweep.
                    self._refused[candidate.options] = last_line(error)
                else:
                    self._journal.add_draft(candidate.options, found)
            if found is not None:
                self._drafts[candidate.options] = found
            done()

    def complete_best(self, candidates: Sequence[Candidate], count: int, done: Callable[[], None]) -> None:
        """Compile the best candidate completely, until the best `count` candidates are complete; call `done` after each."""
        by_options = {candidate.options: candidate for candidate in candidates}
        while not self.out_of_time():
            fitting = [point for point in self.points() if point.plan.fits and point.options not in self._refused]
            missing = [point for point in fitting[:count] if not point.complete]
            if not missing:
                return
            options = missing[0].options
            try:
                with Worker() as worker:
                    plan, costs = worker.call(step.compile_with_costs, self._with(by_options[options]))
            except (PlamoError, RuntimeError) as error:
                self._refused[options] = last_line(error)
                continue
            self._journal.add_complete(options, plan, list(costs))
            self._costs.add(costs)
            self._keep(options, plan)
            done()

    def points(self) -> list[Point]:
        """Return all results: those that fit, the highest MFU as scheduled first, then the others by the memory that they need."""
        found = []
        for options, each in self._drafts.items():
            if options in self._complete:
                found.append(Point(options, self._complete[options], True))
            else:
                found.append(Point(options, draft.estimate(each, self._costs, self._code_bytes), False))

        def order(point: Point) -> tuple[bool, float]:
            return not point.plan.fits, -point.plan.scheduled_mfu if point.plan.fits else point.plan.hbm_needed

        return sorted(found, key=order)

    def _keep(self, options: str, plan: StepPlan) -> None:
        self._complete[options] = plan
        if plan.memory is not None:
            self._code_bytes = plan.memory["code_bytes"]

    def _with(self, candidate: Candidate) -> Request:
        return dataclasses.replace(self._request, config=candidate.config)


def last_line(error: BaseException) -> str:
    """Return the last line of an error message that names the error, or its last line. The log of a process may follow after a reason."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"[\w.]+(Error|Exception)?: ", line)]
    return lines[-1] if lines else str(error).strip().splitlines()[-1]


def table(points: Sequence[Point]) -> Iterator[str]:
    """Yield the lines of a table of results."""
    yield "      HBM  of available  MFU bound  step as scheduled     MFU  compiled        options"
    for point in points:
        plan = point.plan
        if plan.error is not None:
            yield f"{'does not compile':>62}{'':18}{point.options}: {plan.error[:100]}"
            continue
        head = f"{plan.hbm_needed / 2**30:9.2f}  {plan.hbm_available / 2**30:9.2f} GiB"
        if not plan.fits:
            yield f"{head}{'does not fit':>38}{'':18}{point.options}"
            continue
        compiled = "completely" if point.complete else f"{plan.scaled:.0%} scaled"
        yield (
            f"{head} {plan.mfu:10.1%} {step_time(plan.times['scheduled']):>18} {plan.scheduled_mfu:7.1%}  {compiled:<14}  {point.options}"
        )
