"""Continuous batching: decides which prompt is read next, which slot a request gets, and when its row ends.

Each round reads some pieces of prompts and then generates a burst of tokens for all rows:

    scheduler = Scheduler(engine, tokenizer, prefill_budget=512)
    job = scheduler.submit([request])[0]
    while scheduler.busy:
        for delta in scheduler.run_round():
            print(delta.text, end="")

The scheduler does no I/O and starts no threads. Only one thread at a time may call it.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from plamo2_jax.engine.engine import CAPACITY, Engine
from plamo2_jax.engine.prefill import Prefix, PromptReader
from plamo2_jax.engine.request import FinishReason, Request, Row, TopLogprobs
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Reading:
    """The prefill of one prompt, shared by all samples of the prompt."""

    unfinished: int
    """Number of samples that have no slot yet."""
    reader: PromptReader | None = None
    prefix: Prefix | None = None

    def release(self) -> None:
        """Record that one sample does not need the prefix any more. The last sample frees its cache."""
        self.unfinished -= 1
        if not self.unfinished:
            self.reader = self.prefix = None


@dataclasses.dataclass(eq=False)
class Job:
    """A request that the scheduler has accepted. Times are in seconds of the scheduler's clock.

    Attributes:
        row: the text of the request so far.
        cached_tokens: number of prompt tokens restored from the prefix cache.
        submitted: time of submission.
        started: time when the job got a slot, or None.
        first_token: time of the first token, or None.
    """

    row: Row
    priority: int
    deadline: float | None
    reading: _Reading
    submitted: float
    cached_tokens: int = 0
    started: float | None = None
    first_token: float | None = None
    error: str | None = None

    @property
    def request(self) -> Request:
        """The request of this job."""
        return self.row.request

    @property
    def done(self) -> bool:
        """Whether the row has ended or failed."""
        return not self.row.alive or self.error is not None


@dataclasses.dataclass(frozen=True)
class Delta:
    """The output of one round for one job. The last delta of a job has a finish reason or an error."""

    job: Job
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    """For each token, the most likely tokens at its position. The request sets their number."""
    finish_reason: FinishReason | None = None
    error: str | None = None

    def joined(self, later: Delta) -> Delta:
        """Return the output of this round and of a later one for the same job."""
        return Delta(
            self.job,
            self.text + later.text,
            self.token_ids + later.token_ids,
            self.logprobs + later.logprobs,
            self.top_logprobs + later.top_logprobs,
            later.finish_reason,
            later.error,
        )


class Scheduler:
    """Runs requests in the slots of an engine.

    Args:
        engine: the engine.
        tokenizer: decodes the tokens; None: deltas contain token ids only.
        prefill_budget: number of prompt tokens read between two bursts, rounded up to whole pieces. None: read the prompts of
            all jobs that have a slot.
        interval: target for the longest duration of a burst, in seconds. A burst has at least one token.
        clock: returns the time in seconds; tests replace it.

    Attributes:
        drafted: number of draft tokens that were read.
        kept: number of draft tokens that were kept.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        *,
        prefill_budget: int | None = None,
        interval: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.engine, self._tokenizer, self._clock = engine, tokenizer, clock
        self._prefill_budget, self._pace = prefill_budget, _Pace(interval)
        self._waiting: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._starting: collections.deque[tuple[int, Job]] = collections.deque()
        self._running: dict[int, Job] = {}
        self._free = collections.deque(range(engine.slots))
        self._cancelled: set[Job] = set()
        self.drafted = self.kept = 0

    @property
    def busy(self) -> bool:
        """Whether any job is unfinished."""
        return bool(self._waiting or self._starting or self._running)

    @property
    def waiting(self) -> int:
        """Number of jobs without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of jobs with a slot."""
        return len(self._starting) + len(self._running)

    def submit(self, requests: Sequence[Request], *, priority: int = 0, deadline: float | None = None) -> list[Job]:
        """Accept the samples of one prompt.

        Args:
            requests: one request per sample. All have the same prompt, which is read once.
            priority: jobs with a smaller number start first. Equal numbers start in the order of submission.
            deadline: time at which unfinished jobs are ended, in seconds of the scheduler's clock. None: no deadline.
        """
        reading, now = _Reading(len(requests)), self._clock()
        jobs = [Job(Row(request, self._tokenizer), priority, deadline, reading, now) for request in requests]
        for job in jobs:
            heapq.heappush(self._waiting, (priority, next(self._numbers), job))
        return jobs

    def cancel(self, job: Job) -> None:
        """End a job in the next round. A finished job does not change."""
        if not job.done:
            self._cancelled.add(job)

    def run_round(self) -> list[Delta]:
        """Read some pieces of prompts and generate a burst. Return one delta per job with output, in any order."""
        deltas = self._end_early()
        self._start_jobs()
        if self._running:
            deltas += self._burst()
        return deltas

    def _end_early(self) -> list[Delta]:
        """End the jobs that were cancelled or whose deadline has passed."""
        now, cancelled = self._clock(), self._cancelled
        self._cancelled = set()

        def reason(job: Job) -> FinishReason | None:
            if job in cancelled:
                return "cancelled"
            return "deadline" if job.deadline is not None and now >= job.deadline else None

        ended = {job: why for job in self._jobs() if (why := reason(job))}
        if not ended:
            return []
        self._waiting = [entry for entry in self._waiting if entry[2] not in ended]
        heapq.heapify(self._waiting)
        self._free += [slot for slot, job in self._starting if job in ended]
        self._starting = collections.deque(entry for entry in self._starting if entry[1] not in ended)
        running, deltas = set(self._running.values()), []
        for job, why in ended.items():
            deltas.append(Delta(job, job.row.end(why), finish_reason=why))
            if job not in running:
                job.reading.release()
        self._release()
        return deltas

    def _jobs(self) -> list[Job]:
        return [*(job for *_, job in self._waiting), *(job for _, job in self._starting), *self._running.values()]

    def _release(self) -> None:
        """Free the slots of rows that have ended."""
        ended = [slot for slot, job in self._running.items() if job.done]
        for slot in ended:
            del self._running[slot]
        self._free += ended
        if ended:
            self.engine.release(ended)

    def _start_jobs(self) -> None:
        """Assign free slots to the first jobs of the queue, and read prompts within the budget."""
        while self._free and self._waiting:
            job = heapq.heappop(self._waiting)[2]
            job.started = self._clock()
            self._starting.append((self._free.popleft(), job))
        budget = self._prefill_budget
        while self._starting and (budget is None or budget > 0):
            slot, job = self._starting[0]
            reading = job.reading
            if reading.prefix is None:
                if reading.reader is None:
                    request = job.request
                    reading.reader = self.engine.start_prefill(request.prompt, request.boundaries, request.salt)
                if not reading.reader.done:
                    read = reading.reader.read_piece()
                    budget = None if budget is None else budget - read
                    continue
                reading.prefix, reading.reader = reading.reader.prefix(), None
            self._starting.popleft()
            job.cached_tokens = reading.prefix.cached_tokens
            self.engine.insert(slot, reading.prefix, job.request)
            self._running[slot] = job
            reading.release()

    def _burst(self) -> list[Delta]:
        allowed, failed = self._allowed()
        if failed:
            self._release()
            if not self._running:
                return failed
        # While a prompt is being read, bursts are short, so its row starts soon.
        count = 1 if allowed or self._starting else self._pace.count
        begun = time.perf_counter()
        burst = self.engine.step(count, until_free=bool(self._waiting), allowed=allowed)
        made = int((burst.tokens >= 0).any(axis=1).sum())
        self._pace.update(time.perf_counter() - begun, made)
        self.drafted += int(burst.drafted.sum())
        self.kept += int(burst.kept.sum())
        now, deltas = self._clock(), failed
        for slot, job in self._running.items():
            job.first_token = now if job.first_token is None else job.first_token
            deltas.append(self._push(job, slot, burst, made))
        self._release()
        return deltas

    def _allowed(self) -> tuple[dict[int, np.ndarray], list[Delta]]:
        """Return the allowed ids of constrained rows, and the jobs that fail because their constraint has no answer."""
        allowed, failed = {}, []
        for slot, job in self._running.items():
            if job.row.constraint is None:
                continue
            try:
                allowed[slot] = job.row.constraint.allowed()
            except Exception as error:
                job.error = _reason(error)
                failed.append(Delta(job, error=job.error))
        return allowed, failed

    def _push(self, job: Job, slot: int, burst, made: int) -> Delta:
        row, before, texts = job.row, len(job.row.token_ids), []
        n = job.request.top_logprobs
        for step in range(made):
            if not row.alive or burst.tokens[step, slot] < 0:
                break
            top = tuple(
                zip(burst.top_tokens[step, slot, :n].tolist(), burst.top_logprobs[step, slot, :n].tolist(), strict=True)
            )
            try:
                texts.append(row.push(int(burst.tokens[step, slot]), float(burst.logprobs[step, slot]), top))
            except Exception as error:
                job.error = _reason(error)
                break
        new = slice(before, None)
        return Delta(
            job,
            "".join(texts),
            tuple(row.token_ids[new]),
            tuple(row.logprobs[new]),
            tuple(row.top_logprobs[new]),
            row.finish_reason,
            job.error,
        )


class _Pace:
    """Chooses the number of tokens of a burst: large to amortize the cost of a call, small to stream text smoothly."""

    def __init__(self, interval: float):
        self.count, self._interval = 1, interval
        self._compiled = False

    def update(self, seconds: float, made: int) -> None:
        """Adapt to the duration of the last burst. The first burst is ignored, because it may include compilation."""
        if self._compiled and made:
            self.count = max(1, min(CAPACITY, int(self._interval * made / seconds)))
        self._compiled = True


def _reason(error: Exception) -> str:
    """Return the message of a row that failed. Other errors than `PlamoError` are defects, and are logged."""
    if isinstance(error, PlamoError):
        return str(error)
    _LOG.error("a row failed", exc_info=error)
    return f"the answer cannot be continued: {type(error).__name__}: {error}"
