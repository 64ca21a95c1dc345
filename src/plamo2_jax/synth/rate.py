"""The rate of requests to a server, shared by all workers of a run folder.

Requests and tokens have a limit a minute. A request books its place in time; after it, the next place is later by the time that the request
costs at the limits. When a server refuses a request (HTTP 429 or 503), all workers wait for its Retry-After, and the limits are halved.
They rise again by a tenth every 10 s. Places that were booked before a refusal are void, and their requests book again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

from plamo2_jax.synth.shared_state import SharedState

_SLOWEST = 1 / 64
_RISE, _RISE_EVERY = 0.1, 10.0
_LONGEST_PAUSE = 3600.0
_SLICE = 0.25
"""Seconds between checks of a waiting request."""
_WEIGHT = 0.1
"""Weight of the newest response in the mean share of the largest number of tokens that responses have."""
_DEFAULTS = {
    "epoch": 0.0,  # number of refusals
    "free": 0.0,  # time of the next free place by the limit of requests
    "free_tokens": 0.0,  # the same by the limit of tokens
    "paused_until": 0.0,
    "factor": 1.0,  # current share of the limits
    "halved": 0.0,
    "raised": 0.0,
    "share": 1.0,  # mean of used tokens / largest number of tokens of a request
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A booked place of a request."""

    most: int
    """Largest number of tokens of the request."""
    booked: float = 0.0
    """Number of tokens that were booked."""


class Rate:
    """Limits of requests and tokens a minute. Without limits, only pauses are shared.

    The tokens of a response are unknown before it. A place costs the mean share of the largest number of tokens; the difference to the
    actual number is booked after the response.

    Args:
        path: the file with the state; it need not exist.
        requests_per_minute: largest rate of requests; None: no limit.
        tokens_per_minute: largest rate of prompt and generated tokens; None: no limit.
        clock: seconds of the clock that stamps the file.
    """

    def __init__(
        self,
        path: Path,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._state, self._clock = SharedState(path, _DEFAULTS, clock), clock
        self._requests = None if requests_per_minute is None else requests_per_minute / 60
        self._tokens = None if tokens_per_minute is None else tokens_per_minute / 60

    def acquire(self, most: int = 0, pause: Callable[[float], None] = time.sleep) -> Place:
        """Wait until a request may be sent.

        Args:
            most: largest number of its prompt and generated tokens.
            pause: waits for a number of seconds; an exception ends the waiting.
        """
        while True:
            start, epoch, place = self._book(most)
            while (left := start - self._clock()) > 0:
                pause(min(left, _SLICE))
            state = self._state.read()
            if state["epoch"] == epoch and state["paused_until"] <= self._clock():
                return place

    def _book(self, most: int) -> tuple[float, float, Place]:
        """Return the time of a place, and the number of refusals before it."""
        if self._requests is None and self._tokens is None:
            state = self._state.read()
            return state["paused_until"], state["epoch"], Place(most)
        with self._state.update() as state:
            now = self._clock()
            self._raise(state, now)
            start, tokens = max(now, state["paused_until"]), 0.0
            if self._requests is not None:
                start = max(start, state["free"])
            if self._tokens is not None:
                start = max(start, state["free_tokens"])
                tokens = most * state["share"]
                state["free_tokens"] = start + tokens / (self._tokens * state["factor"])
            if self._requests is not None:
                state["free"] = start + 1 / (self._requests * state["factor"])
            return start, state["epoch"], Place(most, tokens)

    def settle(self, place: Place, tokens: int | None) -> None:
        """Book the difference between the tokens of a response and the tokens of its place. None: the server reported none."""
        if self._tokens is None or tokens is None:
            return
        with self._state.update() as state:
            state["free_tokens"] += (tokens - place.booked) / (self._tokens * state["factor"])
            share = min(1.0, tokens / place.most) if place.most else 1.0
            state["share"] += _WEIGHT * (share - state["share"])

    def refuse(self, seconds: float) -> None:
        """Stop all workers for some seconds, and halve the limits, at most once a second."""
        with self._state.update() as state:
            now = self._clock()
            self._raise(state, now)
            if now - state["halved"] >= 1:
                state |= {"factor": max(_SLOWEST, state["factor"] / 2), "halved": now}
            state["raised"] = now
            state["paused_until"] = max(state["paused_until"], now + min(max(seconds, 0.0), _LONGEST_PAUSE))
            state["epoch"] += 1
            state["free"] = state["free_tokens"] = state["paused_until"]

    def _raise(self, state: dict[str, float], now: float) -> None:
        """Raise the limits after some time without a refusal."""
        if state["factor"] < 1 and (steps := math.floor((now - state["raised"]) / _RISE_EVERY)) > 0:
            state["factor"] = min(1.0, state["factor"] + _RISE * steps)
            state["raised"] += steps * _RISE_EVERY
