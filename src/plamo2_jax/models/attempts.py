"""Attempts of an OpenAI client: the interface of an object that delays, forbids and counts them.

A request has several attempts if the client retries it. A server may charge for an attempt whose response is not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from plamo2_jax.models.chat_model import Usage

Outcome = Literal["used", "unusable", "unreported", "refused", "failed"]
"""used: the response is the result of its request.
unusable: the response is damaged, or `accept` refuses its text.
unreported: a timeout or a response that was cut; the server may have charged for it and did not report the tokens.
refused: the server is overloaded or limits the rate (HTTP 429 or 503).
failed: any other status, or no connection."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """An attempt that has ended."""

    outcome: Outcome
    usage: Usage = dataclasses.field(default_factory=Usage)
    """Tokens that the server reported."""
    pause: float = 0.0
    """Seconds until the client sends the next attempt of the request: the server's Retry-After, or the backoff if it is longer."""


class AttemptGate(Protocol):
    """Is asked before each attempt of a client, and receives what became of it. Several threads call it."""

    def start(self, body: Mapping[str, Any], pause: Callable[[float], None]) -> Any:
        """Return when an attempt may be sent. An exception forbids the attempt, and all requests of the call.

        Args:
            body: JSON body of the request.
            pause: waits for a number of seconds. It raises CancelledError when the client is closed.

        Returns:
            A value for `end`.
        """
        ...

    def end(self, started: Any, attempt: Attempt) -> None:
        """Count an attempt. `started` is what `start` returned."""
        ...

    def drop(self, usage: Usage) -> None:
        """Count a response that was used first and is dropped now, because another sample of its request failed."""
        ...
