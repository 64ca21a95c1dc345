"""The JSON of OpenAI's API: fields of requests, and validated reading of responses, which are untrusted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.models.chat_model import NOTHING_BEFORE, ChatResponse, FinishReason, RequestError, Score, Usage
from plamo2_jax.models.streaming import Piece

_MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
SHOWN = 200
"""Maximum number of characters of a server's text in an error message."""
_REASONS: tuple[FinishReason, ...] = ("stop", "length", "tool_calls", "content_filter")


class MalformedResponse(Exception):
    """A response does not have the expected format. The message has the beginning of the response."""


class EndpointError(PlamoError):
    """A server refuses every request or does not support a feature. The message has the reason."""


def messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in the format of OpenAI's API, in which the arguments of a tool call are JSON text."""

    def call(one: Mapping[str, Any]) -> dict[str, Any]:
        function = one["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        return {**one, "function": {**function, "arguments": arguments}}

    return [
        {**message, "tool_calls": [call(one) for one in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in given
    ]


def read_chat(body: bytes, retries: int) -> ChatResponse:
    """Read a chat completion.

    Raises:
        MalformedResponse: the body is not a chat completion.
    """

    def text_of(choice: Any) -> Any:
        text = choice["message"]["content"]
        # A reasoning model at its token limit, a tool call or a content filter has no content.
        return "" if text is None and isinstance(choice.get("finish_reason"), str) else text

    return _read_text(body, retries, text_of, "a chat completion")


def read_completion(body: bytes, retries: int) -> ChatResponse:
    """Read a completion.

    Raises:
        MalformedResponse: the body is not a completion.
    """
    return _read_text(body, retries, lambda choice: choice["text"], "a completion")


def read_chat_probe(body: bytes, retries: int) -> tuple[str, str]:
    """Read the id of the model and the text of a chat completion. The id is empty if the server does not name its model.

    Raises:
        MalformedResponse: the body is not a chat completion.
    """
    return _model_id(body), read_chat(body, retries).text


def read_completion_probe(body: bytes, retries: int) -> tuple[str, str]:
    """Read the id of the model and the text of a completion, as `read_chat_probe` does.

    Raises:
        MalformedResponse: the body is not a completion.
    """
    return _model_id(body), read_completion(body, retries).text


def read_chunk(data: str) -> Piece:
    """Read one event of a streamed chat completion. The finish reason and the usage may be in different events.

    Raises:
        MalformedResponse: the event is not a chunk of a chat completion.
        EndpointError: the event is an error, which ends the stream.
    """
    try:
        found = json.loads(data)
        if found.get("error"):
            raise EndpointError(f"the server could not finish the answer: {error_message(found)}")
        choices, usage = found.get("choices") or [{}], found.get("usage")
        text = (choices[0].get("delta") or {}).get("content") or ""
        text.encode()
        reason = choices[0].get("finish_reason")
        counts = None if usage is None else usage_of(usage)
    except EndpointError:
        raise
    except _MALFORMED:
        raise MalformedResponse(f"an event of the stream is not a chunk of a chat completion: {data[:80]!r}") from None
    return Piece(text, None if reason is None else reason if reason in _REASONS else "unknown", counts)


def error_message(body: Any) -> str:
    """Return the message of an error in OpenAI's format or a similar one, on one line, or "no reason given"."""
    error = body.get("error", body) if isinstance(body, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return shown(message) if isinstance(message, str) and message.strip() else "no reason given"


def shown(text: str) -> str:
    """Return a server's text for use in a message: shortened, on one line, without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * SHOWN])
    return " ".join(line.split())[:SHOWN]


def score_reader(prompts: Sequence[str | list[int]], server: str) -> Callable[[bytes, int], list[Score] | RequestError]:
    """Return a function that reads the scores of continuations from a response with echoed prompts.

    Args:
        prompts: the context alone, and then the context with each continuation.
        server: address of the server, for messages.

    The function raises MalformedResponse if the response has no log-probabilities, and EndpointError if it has no log-probabilities
    of the prompts.
    """

    def read(body: bytes, retries: int) -> list[Score] | RequestError:
        try:
            choices = sorted(json.loads(body)["choices"], key=lambda choice: choice["index"])
            rows = [_echoed(choice["logprobs"], prompt) for choice, prompt in zip(choices, prompts, strict=True)]
        except _MALFORMED:
            raise MalformedResponse(f"the response has no log-probabilities: {body[:80]!r}") from None
        if any(row is None for row in rows):
            raise EndpointError(
                f"{server} does not return the log-probabilities of a prompt (echo with logprobs), so it cannot score texts. Use a server "
                "that does, such as vLLM, or open the model folder without a server"
            )
        names = [[name for name, _, _ in row] for row in rows]
        shared = next(
            (i for i, some in enumerate(zip(*names, strict=False)) if len(set(some)) > 1), min(map(len, names))
        )
        if shared == 0:
            return RequestError(NOTHING_BEFORE, retries)
        scores = []
        for row in rows[1:]:
            logprobs = tuple(logprob for _, logprob, _ in row[shared:])
            scores.append(Score(math.fsum(logprobs), all(greedy for *_, greedy in row[shared:]), logprobs))
        return scores

    return read


def _echoed(found: Mapping[str, Any], prompt: str | list[int]) -> list[tuple[Any, float, bool]] | None:
    """Return (token, log-probability, whether it is the most likely) for each token of a prompt, or None if it was not echoed.

    The last entry of the response is skipped: it is the one generated token.
    """
    logprobs, top = found["token_logprobs"][:-1], found["top_logprobs"][:-1]
    names = prompt if isinstance(prompt, list) else found["tokens"][:-1]
    if not len(logprobs) or (isinstance(prompt, list) and len(logprobs) != len(prompt)):
        return None
    row = []
    for place, (name, logprob, others) in enumerate(zip(names, logprobs, top, strict=True)):
        if logprob is None and place == 0:
            row.append((name, math.nan, False))  # No token comes before the first one, so it has no score.
            continue
        if isinstance(logprob, bool) or not math.isfinite(logprob):
            raise ValueError
        row.append((name, float(logprob), logprob >= max(others.values())))
    return row


def read_usage(body: bytes) -> Usage:
    """Return the token counts of a response that may be damaged otherwise. Counts that cannot be read are None."""
    try:
        return usage_of(json.loads(body).get("usage") or {})
    except _MALFORMED:
        return Usage()


def _read_text(body: bytes, retries: int, text_of: Callable[[Any], Any], what: str) -> ChatResponse:
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        text = text_of(choice)
        text.encode()
        reason = choice.get("finish_reason")
        counts = usage_of(found.get("usage") or {})
    except _MALFORMED:
        raise MalformedResponse(f"the response is not {what}: {body[:80]!r}") from None
    return ChatResponse(text, reason if reason in _REASONS else "unknown", counts, retries)


def _model_id(body: bytes) -> str:
    try:
        found = json.loads(body).get("model")
    except _MALFORMED:
        raise MalformedResponse(f"the response is not JSON: {body[:80]!r}") from None
    return shown(found) if isinstance(found, str) else ""


def usage_of(found: Mapping[str, Any]) -> Usage:
    """Return the token counts of the field `usage` of a response. Counts that are not numbers are None."""
    details = found.get("prompt_tokens_details") or {}
    return Usage(
        *map(_count, (found.get("prompt_tokens"), found.get("completion_tokens"), details.get("cached_tokens")))
    )


def _count(value: Any) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return value if known else None
