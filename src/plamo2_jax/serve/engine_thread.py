"""The thread that owns JAX: it runs the schedulers of all models and passes the generated tokens to the event loop.

The event loop calls `submit` and `score`; nothing else of the engine is touched outside of the thread.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from plamo2_jax.engine.prompt_scores import PromptScorer, PromptScores
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.scheduler import Delta, Job
from plamo2_jax.serve.errors import ApiError
from plamo2_jax.serve.served_model import ServedModel

_LOG = logging.getLogger(__name__)
_COMPILATION = "/jax/core/compile/backend_compile_duration"

AbortReason = Literal["disconnect", "shutdown", "deadline"]
"""Why a job ended before its text did."""


class Answer:
    """What the engine generates for one HTTP request, on the side of the event loop.

    Iterate over it once: it yields (number of the job, delta) until all jobs are done.

    Attributes:
        jobs: number of jobs.
        cancelled: why the jobs were cancelled; None if they were not.
    """

    def __init__(self, engine: EngineThread, jobs: int):
        self.jobs, self._engine, self._open = jobs, engine, jobs
        self.cancelled: AbortReason | None = None
        self.handles: list[Job] = []
        """The scheduler's jobs; only for the engine thread, and after they are done."""
        # At most as many deltas as tokens are generated, so `max_tokens` bounds it.
        self._items: collections.deque[tuple[int, Delta] | ApiError] = collections.deque()
        self._filled = asyncio.Event()

    def put(self, index: int, delta: Delta) -> None:
        """Take a delta. A delta that nobody has read yet is extended, so a busy event loop writes fewer, longer parts."""
        last = self._items[-1] if self._items else None
        if isinstance(last, tuple) and last[0] == index and delta.error is None:
            self._items[-1] = index, last[1].joined(delta)
        else:
            self._items.append((index, delta))
            self._filled.set()

    def fail(self, error: ApiError) -> None:
        """End all jobs with an error."""
        self._items.append(error)
        self._filled.set()

    def cancel(self, reason: AbortReason) -> None:
        """End all jobs within one round of their scheduler. Their last deltas still come."""
        if self.cancelled is None and self._open:
            self.cancelled = reason
            self._engine.cancel(self)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        while self._open:
            while not self._items:
                self._filled.clear()
                await self._filled.wait()
            item = self._items.popleft()
            if isinstance(item, ApiError):
                raise item
            delta = item[1]
            if delta.error is not None:
                self.cancel("disconnect")
                raise ApiError(500, f"the model failed: {delta.error}")
            self._open -= delta.finish_reason is not None
            yield item


@dataclasses.dataclass(eq=False)
class _Scoring:
    """A prompt that is scored."""

    model: ServedModel
    prompt: np.ndarray
    top_logprobs: int
    future: asyncio.Future[PromptScores]
    scorer: PromptScorer | None = None


class EngineThread:
    """Runs models in a thread of its own.

    Args:
        load: called in the thread; returns the models, warmed up. Its exception ends the thread.
        on_delta: called in the event loop with each delta and its job, for metrics.
        on_change: called in the event loop when loading has ended or the engine has failed.

    Attributes:
        models: by name; empty until they are loaded.
        state: starting, ready, failed or stopped.
        error: exception of `load` or of the engine.
        compilations: number of compilations after the warm-up. Each is a fault: it delays all requests.
    """

    def __init__(
        self,
        load: Callable[[], Sequence[ServedModel]],
        *,
        on_delta: Callable[[ServedModel, Answer, int, Delta], None] = lambda *_: None,
        on_change: Callable[[], None] = lambda: None,
    ):
        self._load, self._on_delta, self._on_change = load, on_delta, on_change
        self.models: dict[str, ServedModel] = {}
        self.state: Literal["starting", "ready", "failed", "stopped"] = "starting"
        self.error: BaseException | None = None
        self.compilations = 0
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._places: dict[Job, tuple[ServedModel, Answer, int]] = {}
        self._scorings: collections.deque[_Scoring] = collections.deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; results go to an event loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its round, and wait for it, unless it still loads. Open answers fail."""
        self._commands.put(None)
        self._thread.join(None if self.models else 0.0)

    def submit(
        self,
        model: ServedModel,
        groups: Sequence[Sequence[Request]],
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Answer:
        """Queue requests; call it in the event loop.

        Args:
            model: the model.
            groups: the samples of each prompt. Jobs are numbered through all groups.
            priority: see `Scheduler.submit`.
            deadline: time of `time.monotonic` at which the jobs end.
        """
        answer = Answer(self, sum(map(len, groups)))

        def accept() -> None:
            for group in groups:
                jobs = model.scheduler.submit(group, priority=priority, deadline=deadline)
                for job in jobs:
                    self._places[job] = (model, answer, len(answer.handles))
                    answer.handles.append(job)
            if answer.cancelled:
                self._cancel(answer)

        self._commands.put(accept)
        return answer

    def score(self, model: ServedModel, prompt: np.ndarray, top_logprobs: int) -> asyncio.Future[PromptScores]:
        """Score the tokens of a prompt; call it in the event loop. Cancelling the result ends the work.

        Args:
            model: the model.
            prompt: ids [t] i32.
            top_logprobs: number of most likely tokens at each position.
        """
        scoring = _Scoring(model, prompt, top_logprobs, self._loop.create_future())
        self._commands.put(lambda: self._scorings.append(scoring))
        return scoring.future

    def cancel(self, answer: Answer) -> None:
        """Cancel the jobs of an answer."""
        self._commands.put(lambda: self._cancel(answer))

    def _cancel(self, answer: Answer) -> None:
        for job in answer.handles:
            if job in self._places:
                self._places[job][0].scheduler.cancel(job)

    def _run(self) -> None:
        try:
            self.models = {model.name: model for model in self._load()}
        except BaseException as error:  # The main thread reports it.
            self._fail(error)
            return
        owner = threading.get_ident()

        def compiled(event: str, seconds: float, **details: Any) -> None:
            if event == _COMPILATION and threading.get_ident() == owner:
                self.compilations += 1
                name = details.get("fun_name", "a function")
                _LOG.error("%s was compiled after the warm-up, in %.1f s: this delays all requests", name, seconds)

        jax.monitoring.register_event_duration_secs_listener(compiled)
        self.state = "ready"
        self._notify(self._on_change)
        try:
            self._serve()
            self.state = "stopped"
            self._drop(ApiError(503, "the server has stopped"))
        except BaseException as error:
            _LOG.exception("the engine failed")
            self._fail(error)
        finally:
            jax.monitoring.unregister_event_duration_listener(compiled)

    def _fail(self, error: BaseException) -> None:
        self.error, self.state = error, "failed"
        self._notify(self._on_change)
        refusal = ApiError(500, "the engine has failed: restart the server")
        self._drop(refusal)
        while (command := self._commands.get()) is not None:
            command()
            self._drop(refusal)

    def _drop(self, error: ApiError) -> None:
        """End all answers and scorings with an error."""
        for answer in {place[1] for place in self._places.values()}:
            self._notify(answer.fail, error)
        for scoring in self._scorings:
            self._notify(_resolve, scoring.future, error)
        self._places.clear()
        self._scorings.clear()

    def _serve(self) -> None:
        schedulers = [model.scheduler for model in self.models.values()]
        while True:
            if not self._take_commands(wait=not self._scorings and not any(each.busy for each in schedulers)):
                return
            deltas = [delta for each in schedulers if each.busy for delta in each.run_round()]
            items = []
            for delta in deltas:
                place = self._places[delta.job]
                if delta.finish_reason is not None or delta.error is not None:
                    del self._places[delta.job]
                items.append((place, delta))
            if items:
                self._notify(self._deliver, items)
            self._score_piece()

    def _take_commands(self, *, wait: bool) -> bool:
        """Run the commands that are queued; with `wait`, wait for the first one. Return False at the end."""
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get(block=wait)
                if command is None:
                    return False
                command()
                wait = False
        return True

    def _deliver(self, items: Sequence[tuple[tuple[ServedModel, Answer, int], Delta]]) -> None:
        for (model, answer, index), delta in items:
            self._on_delta(model, answer, index, delta)
            answer.put(index, delta)

    def _score_piece(self) -> None:
        """Score a piece of the first prompt that waits for it. One prompt at a time holds a cache."""
        while self._scorings and self._scorings[0].future.cancelled():
            self._scorings.popleft()
        if not self._scorings:
            return
        scoring = self._scorings[0]
        if scoring.scorer is None:
            scoring.scorer = scoring.model.scheduler.engine.start_scoring(scoring.prompt, scoring.top_logprobs)
        if not scoring.scorer.done:
            scoring.scorer.read_piece()
        if scoring.scorer.done:
            self._scorings.popleft()
            self._notify(_resolve, scoring.future, scoring.scorer.scores())

    def _notify(self, function: Callable[..., None], *args: Any) -> None:
        # A loop that was closed has no clients left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


def _resolve(future: asyncio.Future[PromptScores], result: PromptScores | ApiError) -> None:
    if not future.done():
        if isinstance(result, ApiError):
            future.set_exception(result)
        else:
            future.set_result(result)
