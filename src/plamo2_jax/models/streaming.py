"""The interface of a chat that streams: one conversation, whose answers arrive piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models.chat_model import FinishReason, Usage


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """How an answer is generated."""

    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """An answer gets fewer tokens than `max_new_tokens` where the context has no room for more."""
    seed: int | None = None
    """None: another one for each answer."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one has a finish reason."""

    text: str = ""
    """May be empty: then nothing has arrived yet, and the caller can do something else."""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    """Token counts of the whole answer, with the last piece; None where a server does not report them."""


class StreamingChat(Protocol):
    """A model that streams answers.

    Attributes:
        description: the model and where it runs, for people.
    """

    description: str

    def answer(self, messages: Sequence[Mapping[str, Any]], settings: AnswerSettings) -> Iterator[Piece]:
        """Yield the pieces of an answer, at least one every second. Closing the iterator ends the computation.

        Args:
            messages: objects with `role` and `content`; the last one is what is answered.
            settings: how.

        Raises:
            PlamoError: there is no answer, or only a part of one; the message is one sentence.
        """
        ...

    def close(self) -> None:
        """Release the model."""
