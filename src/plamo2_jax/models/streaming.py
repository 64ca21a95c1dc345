"""The interface of a streaming chat, which returns each answer piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models.chat_model import FinishReason, Usage


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """Settings of an answer."""

    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """Stop settings. The remaining context may limit an answer to fewer than `max_new_tokens` tokens."""
    seed: int | None = None
    """Random seed. None: a new random seed for each answer."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one has a finish reason."""

    text: str = ""
    """The text. An empty text means that no new text has arrived; it returns control to the caller."""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    """Token counts of the whole answer, in the last piece; None if the server does not report them."""


class StreamingChat(Protocol):
    """A model that streams answers.

    Attributes:
        description: name and location of the model to display.
    """

    description: str

    def answer(self, messages: Sequence[Mapping[str, Any]], settings: AnswerSettings) -> Iterator[Piece]:
        """Yield the pieces of an answer, at least one every second. Closing the iterator cancels the answer.

        Args:
            messages: objects with `role` and `content`. The last message is the one to answer.
            settings: settings of the answer.

        Raises:
            PlamoError: the answer is missing or incomplete. The message is one sentence.
        """
        ...

    def close(self) -> None:
        """Release the model."""
