"""From generated text to the messages of a chat: the constraint of a request and the parser of its output."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Collection
from typing import Any, Protocol

from plamo2_jax.engine.request import Constraint
from plamo2_jax.serve.tool_calls import ToolCall, ToolCallParser

MessageDelta = dict[str, Any]
"""A part of an assistant's message, as `delta` of a stream has it: `content`, or `tool_calls` with the index of each call."""


class OutputParser(Protocol):
    """Turns the text of one sample, which arrives in pieces, into parts of a message."""

    def push(self, text: str) -> list[MessageDelta]:
        """Take a piece of text, and return the completed parts."""
        ...

    def finish(self, reason: str) -> tuple[list[MessageDelta], str]:
        """Return the text that was held back at the end, and the finish reason of the response.

        Args:
            reason: why the text ended: stop, length or abort. A complete call turns stop into tool_calls.
        """
        ...


class CallParser:
    """The parser of an answer that may call tools.

    Args:
        names: names of the tools.
    """

    def __init__(self, names: Collection[str]):
        self._parser, self._calls = ToolCallParser(names), 0

    def push(self, text: str) -> list[MessageDelta]:
        """Return the text as content, and each call once it is complete."""
        return [self._delta(part) for part in self._parser.push(text)]

    def finish(self, reason: str) -> tuple[list[MessageDelta], str]:
        """Return the text that was held back; the finish reason is tool_calls instead of stop if there was a call."""
        rest = [self._delta(part) for part in self._parser.finish()]
        return rest, "tool_calls" if self._calls and reason == "stop" else reason

    def _delta(self, part: str | ToolCall) -> MessageDelta:
        if isinstance(part, str):
            return {"content": part}
        self._calls += 1
        call = {"index": self._calls - 1, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
        return {"tool_calls": [{**call, "function": dataclasses.asdict(part)}]}


class TextParser:
    """The parser of an answer that is text."""

    def push(self, text: str) -> list[MessageDelta]:
        """Return the text as content."""
        return [{"content": text}] if text else []

    def finish(self, reason: str) -> tuple[list[MessageDelta], str]:
        """Return nothing, and the reason as it is."""
        return [], reason


@dataclasses.dataclass(frozen=True)
class OutputFormat:
    """What the output of a request must be, and how it is read."""

    parser: Callable[[], OutputParser] = TextParser
    """Makes the parser of one sample."""
    constraint: Callable[[], Constraint] | None = None
    """Makes the constraint of one sample, see `engine.request.Request`; None: the text is free."""
    variables: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the chat template, such as `tools`."""
