"""The interface of chat models: requests, responses, scores, and the protocol `ChatModel`.

If a request cannot be answered, its result is a `RequestError`. The other requests of the same call are answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError

Prompt = str | Sequence[int] | np.ndarray
"""A text, or token ids [t]."""
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "unknown"]
"""stop: the text ended at a stop id or a stop string. length: it reached `max_new_tokens`. Only servers report the other reasons."""


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer."""

    id: str
    """A server's random seed is derived from `seed`, this id and the index of the sample. The local engine does not use it."""
    messages: Sequence[Mapping[str, Any]]
    """Objects with `role` and `content`."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the chat template, such as `tools`. A server has its own template and receives only `tools`."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """Stop settings. An answer also ends at the ids that end a document and at the chat template's end-of-answer token."""
    seed: int = 0
    n: int = 1
    """Number of samples."""


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A prompt to continue."""

    prompt: Prompt
    """A text, in which control strings are plain text, or token ids, which are not changed."""
    bos: bool = True
    """Whether to put the beginning-of-document id before a text."""
    id: str = ""
    """Id for a server's random seed, as in `ChatRequest`. If it is empty, the prompt is used."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """Stop settings. A text also ends at the ids that end a document."""
    seed: int = 0
    n: int = 1
    """Number of samples."""


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """A context and continuations to score. They must be all texts or all token ids.

    Token ids are not changed. A text is tokenized together with its context, because a tokenizer may merge the end of the context with
    the beginning of a continuation. The context then ends at the first token that differs between the context alone and any of the
    joint texts, and all later tokens are scored. So all candidates of a question are scored from the same position.
    """

    context: Prompt
    continuations: Sequence[Prompt]
    bos: bool = True
    """Whether to put the beginning-of-document id before a text."""

    def __post_init__(self) -> None:
        if isinstance(self.continuations, str):
            raise PlamoError("ScoreRequest.continuations is one text: it must be a list of texts or of token ids")


NOTHING_BEFORE = "no token comes before the continuations: keep bos, or give a longer context"
"""Error for a `ScoreRequest` with an empty context."""
MIXED = "context and continuations must be all texts or all token ids"
"""Error for a `ScoreRequest` with both texts and token ids."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """Token counts of one response. A count is None if the server does not report it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    """Number of prompt tokens restored from a prefix cache."""


@dataclasses.dataclass(frozen=True)
class ChatResponse:
    """One generated text."""

    text: str
    """The text without control tokens, cut before the stop string."""
    finish_reason: FinishReason
    usage: Usage = dataclasses.field(default_factory=Usage)
    retries: int = 0
    """Number of failed attempts before this response."""
    token_ids: tuple[int, ...] | None = None
    """All generated tokens, including the stop id. None for a response from a server."""


@dataclasses.dataclass(frozen=True)
class RequestError:
    """The result of a request that has no response."""

    reason: str
    """The reason in one sentence."""
    retries: int = 0
    """Number of failed attempts before the last one."""


@dataclasses.dataclass(frozen=True)
class Score:
    """The log-probability of a continuation."""

    logprob: float
    """Sum of `token_logprobs`, in nats, at temperature 1 and without filters."""
    is_greedy: bool
    """Whether every token is the most likely one. Greedy decoding then generates this continuation."""
    token_logprobs: tuple[float, ...]
    """Log-probability of each scored token, in nats."""


class ChatModel(Protocol):
    """A model that answers requests."""

    description: Mapping[str, Any]
    """Fields that identify the model. They are stored in the configuration of a run and in the provenance of its data."""
    parallel: bool
    """Whether several threads should call the model at the same time."""

    def chat(
        self, requests: Sequence[ChatRequest], *, accept: Callable[[str], bool] | None = None
    ) -> list[list[ChatResponse] | RequestError]:
        """Answer conversations.

        Args:
            requests: conversations, with their settings.
            accept: returns whether a text is usable. An OpenAI client repeats the request if it is not. The local engine ignores
                `accept`, because it would generate the same text again.

        Returns:
            For each request, a list of `n` responses or an error.
        """
        ...

    def complete(self, requests: Sequence[CompletionRequest]) -> list[list[ChatResponse] | RequestError]:
        """Continue prompts. Return for each request a list of `n` responses or an error."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score] | RequestError]:
        """Return the scores of the continuations of each request, or an error. A context is read once."""
        ...

    def close(self) -> None:
        """Release the model's resources and cancel pending requests. Any thread may call this."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
