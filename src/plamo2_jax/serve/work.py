"""The work of the engine for one HTTP request: admitted within the limits, cancelled when the client leaves or the server stops."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import numpy as np

from plamo2_jax.engine.prompt_scores import PromptScores
from plamo2_jax.engine.request import Request
from plamo2_jax.serve.engine_thread import AbortReason, Answer, EngineThread
from plamo2_jax.serve.errors import ApiError
from plamo2_jax.serve.served_model import ServedModel

Receive = Callable[[], Awaitable[Any]]
_MEASURED_ENDS = 65
_SHORTEST_RETRY, _LONGEST_RETRY = 1, 60
"""Limits of the header Retry-After, in seconds."""


class Work:
    """What the engine does for one HTTP request.

    Args:
        engine: the engine.
        model: the model of the request.
        timeout: seconds after which the jobs end.
    """

    def __init__(self, engine: EngineThread, model: ServedModel, timeout: float):
        self.model, self._engine = model, engine
        self._deadline = time.monotonic() + timeout
        self._answer: Answer | None = None
        self._scores: asyncio.Future[PromptScores] | None = None
        self.cancelled: AbortReason | None = None

    def submit(self, groups: Sequence[Sequence[Request]], priority: int) -> Answer:
        """Queue the samples of each prompt."""
        self._answer = self._engine.submit(self.model, groups, priority=priority, deadline=self._deadline)
        if self.cancelled:
            self._answer.cancel(self.cancelled)
        return self._answer

    async def score(self, prompt: np.ndarray, top_logprobs: int) -> PromptScores:
        """Return the scores of a prompt's tokens.

        Raises:
            ApiError: the work was cancelled, or its time is over.
        """
        self._scores = self._engine.score(self.model, prompt, top_logprobs)
        try:
            if self.cancelled:
                self._scores.cancel()
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                return await self._scores
        except TimeoutError:
            raise ApiError(503, "the deadline of the request has passed while its prompt was scored") from None
        except asyncio.CancelledError:
            if self.cancelled is None:
                raise
            raise ApiError(503, "the request was cancelled while its prompt was scored") from None

    def cancel(self, reason: AbortReason) -> None:
        """End the work early."""
        self.cancelled = self.cancelled or reason
        if self._answer is not None:
            self._answer.cancel(reason)
        if self._scores is not None:
            self._scores.cancel()


class Admission:
    """Counts the jobs that are accepted and not done, and refuses more than the limit.

    Args:
        limit: jobs at the same time, with and without a slot.
        clock: returns the time in seconds.

    Attributes:
        works: the work in progress.
        draining: whether all new work is refused.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic):
        self.limit, self.jobs, self.draining = limit, 0, False
        self.works: set[Work] = set()
        self._clock = clock
        # Times of the latest ends and their numbers of jobs. The first entry is where the measurement begins.
        self._ends: collections.deque[tuple[float, int]] = collections.deque(maxlen=_MEASURED_ENDS)

    def check(self, jobs: int = 1) -> None:
        """Refuse work that exceeds the limits.

        Raises:
            ApiError: 429 if it could be accepted later, 400 if never, 503 while the server stops.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", headers={"Retry-After": "10"})
        if jobs > self.limit:
            raise ApiError(
                400, f"prompts x best_of is {jobs}: this server accepts at most {self.limit} in one request", param="n"
            )
        if self.jobs + jobs > self.limit:
            raise ApiError(
                429,
                f"the server is busy: {self.jobs} of at most {self.limit} texts are waiting or running. Try again later",
                code="queue_full",
                headers={"Retry-After": str(self._seconds_until_free(self.jobs + jobs - self.limit))},
            )

    def _seconds_until_free(self, count: int) -> int:
        """Return the estimated seconds until `count` jobs have ended, from the rate of ends since the server was last idle."""
        begun = self._ends[0][0]
        ended = sum(jobs for _, jobs in list(self._ends)[1:])
        if not ended:
            return _SHORTEST_RETRY
        seconds = count * (self._clock() - begun) / ended
        return max(_SHORTEST_RETRY, min(math.ceil(seconds), _LONGEST_RETRY))

    def open(self, work: Work, jobs: int) -> Callable[[], None]:
        """Count the jobs of a request; the result ends that.

        Raises:
            ApiError: see `check`.
        """
        self.check(jobs)
        if not self.jobs:
            # Idle time says nothing about the rate.
            self._ends.clear()
            self._ends.append((self._clock(), 0))
        self.jobs += jobs
        self.works.add(work)

        def close() -> None:
            if work in self.works:
                self.works.remove(work)
                self.jobs -= jobs
                self._ends.append((self._clock(), jobs))

        return close


@contextlib.contextmanager
def cancelled_on_disconnect(receive: Receive, work: Work) -> Iterator[None]:
    """Cancel work when the client leaves. The request's body must have been read.

    Args:
        receive: of the ASGI connection.
        work: what to cancel.
    """

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        work.cancel("disconnect")

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
