"""Requests and responses of benchmark tasks as JSON: the keys of requests, the hashes of prompts, and the entries of the journal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from plamo2_jax.eval.task import JudgeRequest, Request, Responses
from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest, RequestError, Score, ScoreRequest, Usage

_KINDS = {ScoreRequest: "score", CompletionRequest: "complete", ChatRequest: "chat", JudgeRequest: "judge"}
# Every response of the model is followed by a request of the judge, or ends the item, so the order of the kinds has no effect on speed.
_ORDER = {kind: number for number, kind in enumerate(_KINDS.values())}


def kind_of(request: Request) -> str:
    """Return "score", "complete", "chat" or "judge"."""
    return _KINDS[type(request)]


def request_json(request: Request) -> dict[str, Any]:
    """Return a request as a JSON object that determines its response, together with the model."""
    inner = request.request if isinstance(request, JudgeRequest) else request
    fields = {field.name: getattr(inner, field.name) for field in dataclasses.fields(inner)}
    return {"kind": kind_of(request), **json.loads(json.dumps(fields, default=_plain))}


def digest(value: Any) -> str:
    """Return 32 hexadecimal digits: a hash of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def identity(description: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields of a model's description that determine its responses to requests of a kind.

    A local model is identified by its fingerprint, so its folder may move. The chat template matters to conversations only.
    """
    omitted = {"model"} if "fingerprint" in description else set()
    if kind in ("score", "complete"):
        omitted |= {"template"}
    return {name: value for name, value in description.items() if name not in omitted}


def place(request: Request) -> tuple[int, str]:
    """Return a sort key. Requests of one kind are adjacent, and among them those with the same beginning."""
    inner = request.request if isinstance(request, JudgeRequest) else request
    if isinstance(inner, ChatRequest):
        prompt: Any = "\n".join(str(message.get("content")) for message in inner.messages)
    else:
        prompt = inner.context if isinstance(inner, ScoreRequest) else inner.prompt
        if not isinstance(prompt, str):
            prompt = "".join(map(chr, (0xE000 + np.asarray(prompt) % 0x1000).tolist()))
    return _ORDER[kind_of(request)], prompt


def response_entry(key: str, responses: Responses | RequestError, **fields: Any) -> dict[str, Any]:
    """Return a journal entry with the id `key` for responses, or for the reason why there are none."""
    if not isinstance(responses, RequestError) and any(
        isinstance(one, Score) and not all(map(math.isfinite, (one.logprob, *one.token_logprobs))) for one in responses
    ):
        responses = RequestError("a log-probability is not a finite number")
    if isinstance(responses, RequestError):
        return {"id": key, "failed": responses.reason, **fields}
    some = [
        [one.logprob, one.is_greedy, list(one.token_logprobs)]
        if isinstance(one, Score)
        else [one.text, one.finish_reason, one.usage.prompt_tokens, one.usage.completion_tokens]
        for one in responses
    ]
    return {"id": key, ("scores" if responses and isinstance(responses[0], Score) else "texts"): some, **fields}


def read_entry(entry: Mapping[str, Any]) -> Responses | RequestError:
    """Return the responses of a journal entry. New and stored responses have the same fields, so they give the same answers."""
    if "failed" in entry:
        return RequestError(entry["failed"])
    if "scores" in entry:
        return [Score(logprob, is_greedy, tuple(tokens)) for logprob, is_greedy, tokens in entry["scores"]]
    return [ChatResponse(text, reason, Usage(*counts)) for text, reason, *counts in entry["texts"]]


def is_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether an object is a valid journal entry."""
    try:
        return isinstance(read_entry(entry), RequestError | list) and isinstance(entry["seconds"], int | float)
    except (KeyError, TypeError, ValueError):
        return False


def token_counts(entry: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of prompt tokens, generated tokens and scored tokens of an entry. Counts that a server does not report are 0."""
    return {
        "prompt": sum(row[2] or 0 for row in entry.get("texts", ())),
        "generated": sum(row[3] or 0 for row in entry.get("texts", ())),
        "scored": sum(len(row[2]) for row in entry.get("scores", ())),
    }


def _plain(value: Any) -> Any:
    """Return a value that JSON lacks as one that it has."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return list(value)
