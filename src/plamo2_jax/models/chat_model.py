"""The interface of a chat model: requests, responses, scores, and the protocol that every implementation follows.

A request that cannot be answered gives a `RequestError` in its place; the other requests of the same call are answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

Prompt = str | Sequence[int] | np.ndarray
"""A text, or token ids [t]."""
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "unknown"]
"""stop: the text ended by itself, at a stop id or at a stop string. length: it reached `max_new_tokens`. The others come from servers."""


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer."""

    id: str
    """Decides, with the seed and the number of the sample, the randomness of a server's answers."""
    messages: Sequence[Mapping[str, Any]]
    """Objects with `role` and `content`."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the chat template, such as `tools`. A server has its own template: it receives `tools` only."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """What ends an answer, besides the ids that end a document and the token that the chat template puts behind an answer."""
    seed: int = 0
    n: int = 1
    """Number of samples."""


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A prompt to continue."""

    prompt: Prompt
    """A text, in which control strings are text; or token ids, which are taken as they are."""
    bos: bool = True
    """Whether the beginning-of-document id comes before a text."""
    id: str = ""
    """As in `ChatRequest`. Left empty, the prompt takes its place."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """What ends a text, besides the ids that end a document."""
    seed: int = 0
    n: int = 1
    """Number of samples."""


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """Continuations of one context whose log-probabilities are wanted. Context and continuations are all texts or all token ids.

    Where a token begins in a continuation: token ids are taken as they are. A text is tokenized together with its context, because
    a tokenizer may join the end of the context with the beginning of the continuation. The context then ends where the tokens of the
    context alone and of all joint texts begin to differ; all later tokens are scored. So the candidates of a question are always
    scored from the same token on.
    """

    context: Prompt
    continuations: Sequence[Prompt]
    bos: bool = True
    """Whether the beginning-of-document id comes before a text."""


NOTHING_BEFORE = "no token comes before the continuations: keep bos, or give a longer context"
"""Why a `ScoreRequest` without any context has no score."""
MIXED = "context and continuations must be all texts or all token ids"
"""Why a `ScoreRequest` of both has no score."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """Token counts of one response; None where a server does not report them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens of the prompt that a prefix cache held."""


@dataclasses.dataclass(frozen=True)
class ChatResponse:
    """One generated text."""

    text: str
    """Without control tokens, cut before the stop string."""
    finish_reason: FinishReason
    usage: Usage = dataclasses.field(default_factory=Usage)
    retries: int = 0
    """Failed attempts before this response."""
    token_ids: tuple[int, ...] | None = None
    """All generated tokens, the stop id included; None from a server."""


@dataclasses.dataclass(frozen=True)
class RequestError:
    """Why a request has no response."""

    reason: str
    """One sentence."""
    retries: int = 0
    """Failed attempts, the last one not counted."""


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a model finds a continuation."""

    logprob: float
    """Sum of `token_logprobs`, in nats, under the model's own distribution (temperature 1, no filters)."""
    is_greedy: bool
    """Whether every token is the likeliest one, so that greedy decoding would write this continuation."""
    token_logprobs: tuple[float, ...]
    """Log-probability of each scored token, in nats."""


class ChatModel(Protocol):
    """A model that answers requests."""

    description: Mapping[str, Any]
    """What identifies the model: part of a run's configuration and of the provenance of its data."""
    parallel: bool
    """Whether several threads should call it at the same time."""

    def chat(
        self, requests: Sequence[ChatRequest], *, accept: Callable[[str], bool] | None = None
    ) -> list[list[ChatResponse] | RequestError]:
        """Answer conversations.

        Args:
            requests: what to answer.
            accept: whether a text is usable. A client of a server asks again for one that is not; the local engine ignores it, since
                it would write the same text.

        Returns:
            For each request its `n` responses.
        """
        ...

    def complete(self, requests: Sequence[CompletionRequest]) -> list[list[ChatResponse] | RequestError]:
        """Continue prompts; returns for each request its `n` responses."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score] | RequestError]:
        """Return the log-probability of each continuation of each request. A context is read once."""
        ...

    def close(self) -> None:
        """Release what the model holds and give up pending requests; may be called from another thread."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
