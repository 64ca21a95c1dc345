"""Limits: budgets of tokens, money and time, and the conditions under which a worker may send a request."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from plamo2_jax.eval.request_json import token_counts
from plamo2_jax.models import ChatModel, ChatRequest, ChatResponse, CompletionRequest, RequestError, Score, ScoreRequest
from plamo2_jax.models.attempts import Attempt
from plamo2_jax.models.chat_model import Usage
from plamo2_jax.synth.config import GeneratorConfig, SynthConfig
from plamo2_jax.synth.lease import Halt, Lease
from plamo2_jax.synth.rate import Place, Rate
from plamo2_jax.synth.spending import Ledger, Spending

CHARACTERS_PER_TOKEN = 3
"""For estimates without a tokenizer."""
_REFRESH = 5.0
"""Seconds between readings of what other workers spend."""


class BudgetSpent(Halt):
    """A budget is spent. What is finished is stored."""


class Terminated(Halt):
    """The worker got SIGTERM. What is finished is stored."""


class Budget:
    """What was spent by all starts and workers, against the limits.

    The spending of other workers is read every few seconds. So the workers together may exceed a limit by their spending in this time and
    by the requests in flight.

    Args:
        config: the configuration, with limits and prices.
        stored: returns what all workers have stored.
        ledger: stores what this worker spends beside its stored responses.
    """

    def __init__(self, config: SynthConfig, stored: Callable[[], Spending], ledger: Ledger):
        self.limits, self._config, self._stored, self._ledger = config.limits, config, stored, ledger
        self._lock = threading.Lock()
        self.refresh()

    def check(self) -> None:
        """Raise `BudgetSpent` if a limit is reached."""
        limits = {name: getattr(self.limits, name) for name in ("max_tokens", "max_cost", "max_seconds")}
        with self._lock:
            since = time.monotonic() - self._refreshed
            if since >= _REFRESH:
                self.refresh(journals=any(limit is not None for limit in limits.values()))
                since = 0.0
        spent = self.spent
        values = (spent.prompt_tokens + spent.completion_tokens, spent.cost, spent.seconds + since)
        for (name, limit), value in zip(limits.items(), values, strict=True):
            if limit is not None and value >= limit:
                raise BudgetSpent(
                    f"limits.{name}={limit:g} is reached ({value:g}): raise it and run the command again to continue"
                )

    def refresh(self, *, journals: bool = True) -> None:
        """Store the seconds of this worker, and read what all workers have spent."""
        self._ledger.flush()
        if journals:
            self.spent = self._stored()
        self._refreshed = time.monotonic()

    def add(self, responses: Any, config: GeneratorConfig) -> None:
        """Count the responses to one request."""
        with self._lock:
            self.spent.add(responses, config)

    def waste(self, kind: Any, usage: Usage, config: GeneratorConfig) -> None:
        """Count and store a response that was paid for and is not in a journal."""
        with self._lock:
            self.spent.waste(kind, usage, config)
        self._ledger.waste(kind, usage, config)

    def waste_entry(self, entry: Mapping[str, Any]) -> None:
        """Count and store a journal entry that came too late. It was counted before as a response that will be stored."""
        config = (self._config.judge if entry.get("judge") else self._config.generator) or GeneratorConfig()
        counts = token_counts(entry)
        self._ledger.waste("late", Usage(counts["prompt"], counts["generated"]), config)

    def fail(self, *, unreported: bool) -> None:
        """Count and store an attempt that failed."""
        self._ledger.fail(unreported=unreported)


class Guard:
    """Decides whether this worker may send requests and store responses."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        """Set to make the worker end after the requests in flight."""
        self.halted = False
        """Whether a check of the current unit has failed."""
        self._lease: Lease | None = None

    @contextlib.contextmanager
    def unit(self, lease: Lease) -> Iterator[None]:
        """Require a lease until the block ends."""
        self._lease, self.halted = lease, False
        try:
            yield
        finally:
            self._lease = None

    def check_lease(self) -> None:
        """Raise `LeaseLost` if this worker has lost the lease of its unit."""
        if self._lease is not None:
            with self.halting():
                self._lease.check()

    def check(self) -> None:
        """Raise `Terminated` or `LeaseLost` if no further request may be sent."""
        with self.halting():
            if self.stopped.is_set():
                raise Terminated("stopped by SIGTERM; all responses are stored, and the same command resumes")
            self.check_lease()

    @contextlib.contextmanager
    def halting(self) -> Iterator[None]:
        """Remember that the block stopped the worker."""
        try:
            yield
        except Halt:
            self.halted = True
            raise


class ServerGate:
    """Delays and counts the HTTP requests to a server. It implements `AttemptGate`.

    Args:
        rate: limits shared by all workers.
        guard: is checked just before a request is sent.
        budget: counts responses that are not stored.
        config: prices.
    """

    def __init__(self, rate: Rate, guard: Guard, budget: Budget, config: GeneratorConfig):
        self._rate, self._guard, self._budget, self._config = rate, guard, budget, config

    def start(self, body: Mapping[str, Any], pause: Callable[[float], None]) -> Place:
        """Return when an attempt may be sent, and the worker still has the lease of its unit."""

        def wait(seconds: float) -> None:
            self._guard.check()
            pause(seconds)

        place = self._rate.acquire(largest_usage(body), wait)
        self._guard.check()
        return place

    def end(self, started: Place, attempt: Attempt) -> None:
        """Count an attempt."""
        usage, outcome = attempt.usage, attempt.outcome
        known = usage.prompt_tokens is not None or usage.completion_tokens is not None
        charged = outcome in ("used", "unusable", "unreported")
        tokens = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0) if known else None
        self._rate.settle(started, tokens if charged else 0)
        if outcome == "refused":
            self._rate.refuse(attempt.pause)
        if outcome == "unusable" and known:
            self._budget.waste("unusable", usage, self._config)
        if outcome != "used":
            self._budget.fail(unreported=outcome == "unreported" or (outcome == "unusable" and not known))

    def drop(self, usage: Usage) -> None:
        """Count a response that nobody will use."""
        self._budget.waste("dropped", usage, self._config)


def largest_usage(body: Mapping[str, Any]) -> int:
    """Return an upper estimate of the tokens of a request: its prompt tokens plus `max_tokens`."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        tokens = sum(map(len, prompt)) if prompt and isinstance(prompt[0], str | list) else len(prompt)
    else:
        texts = [str(message.get("content") or "") for message in body.get("messages") or ()] or [prompt or ""]
        tokens = -(-sum(map(len, texts)) // CHARACTERS_PER_TOKEN)
    return tokens + int(body.get("max_tokens") or 0)


class LimitedModel:
    """A chat model whose requests are counted and limited. It implements `ChatModel`.

    Args:
        model: the model.
        config: its prices.
        budget: counts the cost of the responses.
        guard: is checked before each request.
    """

    def __init__(self, model: ChatModel, config: GeneratorConfig, budget: Budget, guard: Guard):
        self._model, self._config, self._budget, self._guard = model, config, budget, guard
        self.description: Mapping[str, Any] = model.description
        if config.servers:
            # Responses do not depend on which of the servers gave them.
            self.description = {**model.description, "url": config.url}
        self.parallel = model.parallel

    def chat(
        self, requests: Sequence[ChatRequest], *, accept: Callable[[str], bool] | None = None
    ) -> list[list[ChatResponse] | RequestError]:
        """Answer conversations."""
        return self._limited(lambda: self._model.chat(requests, accept=accept))

    def complete(self, requests: Sequence[CompletionRequest]) -> list[list[ChatResponse] | RequestError]:
        """Continue prompts."""
        return self._limited(lambda: self._model.complete(requests))

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score] | RequestError]:
        """Score continuations. Recipes do not use this."""
        return self._model.score(requests)

    def close(self) -> None:
        """Release the model's resources. After a budget is spent or a lease is lost, let the requests in flight end: they are paid."""
        if not self._guard.halted:
            self._model.close()

    def _limited(self, ask: Callable[[], list]) -> list:
        with self._guard.halting():
            self._budget.check()
            self._guard.check()
            found = ask()
        for responses in found:
            self._budget.add(responses, self._config)
        return found
