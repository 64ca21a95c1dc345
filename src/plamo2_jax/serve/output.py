"""From generated text to the messages of a chat: the constraint of a request and the parser of its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from plamo2_jax.engine.request import Constraint
from plamo2_jax.serve.errors import invalid
from plamo2_jax.serve.fields import Fields
from plamo2_jax.serve.served_model import ServedModel

FORMAT_FIELDS = ("response_format", "tools")
"""Fields that ask for more than text."""
MessageDelta = dict[str, Any]
"""A part of an assistant's message, as `delta` of a stream has it: `content`, or `tool_calls` with the index of each call."""


class OutputParser(Protocol):
    """Turns the text of one sample, which arrives in pieces, into parts of a message."""

    def push(self, text: str) -> list[MessageDelta]:
        """Take a piece of text; return what it completes."""
        ...

    def finish(self, reason: str) -> tuple[list[MessageDelta], str]:
        """Return what is held back at the end, and the finish reason of the response.

        Args:
            reason: why the text ended: stop, length or abort. A complete call turns stop into tool_calls.
        """
        ...


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


def read_output_format(fields: Fields, model: ServedModel) -> OutputFormat:
    """Return the format that `response_format`, `tools`, `tool_choice` and `parallel_tool_calls` of a request ask for.

    It may compile a grammar, so it is called in a thread other than the event loop's where one of these fields is given.

    Args:
        fields: the request.
        model: the model that is asked.

    Raises:
        ApiError: a field is not allowed.
    """
    del model
    form = fields.nested("response_format")
    if form is not None and form.get("type") != "text":
        raise invalid("response_format", "response_format is not supported: leave it out, or give type text")
    if fields.items("tools", "an array of tools") and fields.get("tool_choice") != "none":
        raise invalid("tools", "tools are not supported: leave them out, or give tool_choice none")
    for name in ("tool_choice", "parallel_tool_calls"):
        fields.get(name)
    return OutputFormat()
