"""Limits: budgets of tokens, money and time, and a rate of requests that the workers of a host share."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatModel, ChatRequest, ChatResponse, CompletionRequest, RequestError, Score, ScoreRequest
from plamo2_jax.synth.config import GeneratorConfig, LimitsConfig

_SLOWEST = 1 / 64
_RECOVERY = 10.0  # Seconds between changes of the rate.
_REFRESH = 5.0  # Seconds between readings of what other workers spend.


class BudgetSpent(PlamoError):
    """A budget is spent. What is finished is stored."""


@dataclasses.dataclass
class Spending:
    """Tokens and money."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    requests: int = 0
    repeated: int = 0
    """Number of attempts that failed and were repeated. A server may charge for them."""

    def add(self, responses: Sequence[ChatResponse] | RequestError, config: GeneratorConfig) -> None:
        """Add the responses to one request."""
        self.requests += 1
        if isinstance(responses, RequestError):
            self.repeated += responses.retries
            return
        for response in responses:
            self.repeated += response.retries
            # A server reports the prompt of each sample, though it reads it once.
            self.count(response.usage.prompt_tokens or 0, response.usage.completion_tokens or 0, config)

    def count(self, prompt: int, completion: int, config: GeneratorConfig) -> None:
        """Add tokens and their price."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cost += (prompt * config.price_prompt + completion * config.price_completion) / 1e6


class Budget:
    """What was spent by all starts and workers, against the limits.

    What other workers spend is read again every few seconds, so together they may exceed a limit by what they spend in this time and by the
    requests in flight.

    Args:
        limits: the limits.
        stored: returns what all stored responses cost.
    """

    def __init__(self, limits: LimitsConfig, stored: Callable[[], Spending]):
        self.limits, self._stored = limits, stored
        self.spent = stored()
        self._lock, self._start = threading.Lock(), time.monotonic()
        self._refreshed = self._start

    def check(self) -> None:
        """Raise `BudgetSpent` if a limit is reached."""
        with self._lock:
            if time.monotonic() - self._refreshed >= _REFRESH:
                self.refresh()
        limits, spent = self.limits, self.spent
        tokens, seconds = spent.prompt_tokens + spent.completion_tokens, time.monotonic() - self._start
        for name, value in (("max_tokens", tokens), ("max_cost", spent.cost), ("max_seconds", seconds)):
            limit = getattr(limits, name)
            if limit is not None and value >= limit:
                raise BudgetSpent(
                    f"limits.{name}={limit:g} is reached ({value:g}): raise it and run the command again to go on"
                )

    def refresh(self) -> None:
        """Read what all workers have spent. Attempts that were repeated are known for this worker only."""
        self.spent = dataclasses.replace(self._stored(), repeated=self.spent.repeated)
        self._refreshed = time.monotonic()

    def add(self, responses: Any, config: GeneratorConfig) -> None:
        """Count the responses to one request."""
        with self._lock:
            self.spent.add(responses, config)


class Rate:
    """A token bucket in a file, shared by the processes of a host.

    Args:
        path: the file; it need not exist.
        per_minute: largest rate.
        clock, sleep: time in seconds, for tests.
    """

    def __init__(
        self,
        path: Path,
        per_minute: float,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._path, self._per_second, self._clock, self._sleep = path, per_minute / 60, clock, sleep

    def acquire(self) -> None:
        """Wait until a request may be sent."""
        with self._state() as state:
            wait = max(0.0, state["next"] - self._clock())
            state["next"] = max(state["next"], self._clock()) + 1 / (self._per_second * state["factor"])
        if wait:
            self._sleep(wait)

    def report(self, refused: bool) -> None:
        """Halve the rate after a refusal, and raise it by a tenth of the largest rate after 10 s without one."""
        with self._state() as state:
            now = self._clock()
            if refused and now - state["halved"] >= 1:
                state |= {"factor": max(_SLOWEST, state["factor"] / 2), "halved": now, "raised": now}
            elif not refused and state["factor"] < 1 and now - state["raised"] >= _RECOVERY:
                state |= {"factor": min(1.0, state["factor"] + 0.1), "raised": now}

    def _state(self) -> _SharedState:
        return _SharedState(self._path)


class _SharedState:
    """The contents of a small JSON file, locked while the block runs."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> dict[str, float]:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._state = {"next": 0.0, "factor": 1.0, "halved": 0.0, "raised": 0.0}
        try:
            stored = json.loads(os.pread(self._file, 4096, 0) or b"{}")
            self._state |= {name: float(stored[name]) for name in self._state if name in stored}
        except (ValueError, TypeError):
            pass  # A torn write of a killed worker: start at the full rate.
        return self._state

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, json.dumps(self._state).encode(), 0)
        finally:
            os.close(self._file)


class LimitedModel:
    """A chat model whose requests are counted and limited. It implements `ChatModel`.

    Args:
        model: the model.
        config: its prices.
        budget: counts what the responses cost.
        rate: limits the requests to a server; None: no limit.
    """

    def __init__(self, model: ChatModel, config: GeneratorConfig, budget: Budget, rate: Rate | None):
        self._model, self._config, self._budget, self._rate = model, config, budget, rate
        self.description: Mapping[str, Any] = model.description
        self.parallel = model.parallel
        self._stopped = False

    def chat(
        self, requests: Sequence[ChatRequest], *, accept: Callable[[str], bool] | None = None
    ) -> list[list[ChatResponse] | RequestError]:
        """Answer conversations."""
        return self._limited(lambda: self._model.chat(requests, accept=accept), len(requests))

    def complete(self, requests: Sequence[CompletionRequest]) -> list[list[ChatResponse] | RequestError]:
        """Continue prompts."""
        return self._limited(lambda: self._model.complete(requests), len(requests))

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score] | RequestError]:
        """Score continuations. Recipes do not use this."""
        return self._model.score(requests)

    def close(self) -> None:
        """Release the model's resources. After a budget is spent, wait for the requests in flight instead, because they are paid."""
        if not self._stopped:
            self._model.close()

    def _limited(self, ask: Callable[[], list], count: int) -> list:
        try:
            self._budget.check()
        except BudgetSpent:
            self._stopped = True
            raise
        if self._rate is not None:
            for _ in range(count):
                self._rate.acquire()
        found = ask()
        for responses in found:
            self._budget.add(responses, self._config)
            if self._rate is not None:
                failed = isinstance(responses, RequestError)
                self._rate.report(failed or any(response.retries for response in responses))
        return found
