"""What the responses of both endpoints share: finish reasons, usage, and the scores of generated tokens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from plamo2_jax.engine.scheduler import Delta
from plamo2_jax.serve.engine_thread import Answer
from plamo2_jax.serve.logprobs import TokenScore
from plamo2_jax.serve.served_model import ServedModel

_REASONS = {"stop_id": "stop", "stop_string": "stop", "length": "length", "cancelled": "abort", "deadline": "abort"}


def finish_fields(answer: Answer, delta: Delta) -> dict[str, Any]:
    """Return `finish_reason`, and `stop_reason` where the text was ended before its time: deadline, shutdown or disconnect."""
    reason = delta.finish_reason and _REASONS[delta.finish_reason]
    if reason != "abort":
        return {"finish_reason": reason}
    why = "deadline" if delta.finish_reason == "deadline" else answer.cancelled
    return {"finish_reason": "abort", "stop_reason": why}


def token_scores(delta: Delta) -> list[TokenScore]:
    """Return the scores of a delta's tokens."""
    return [
        TokenScore(token, logprob, top)
        for token, logprob, top in zip(delta.token_ids, delta.logprobs, delta.top_logprobs, strict=True)
    ]


def usage(prompt_tokens: int, answer: Answer | None, prompts: int) -> dict[str, Any]:
    """Return the usage of a request whose jobs are done.

    Args:
        prompt_tokens: tokens of all prompts.
        answer: None: nothing was generated.
        prompts: number of prompts, which divides the number of jobs.
    """
    jobs = [] if answer is None else answer.handles
    generated = sum(len(job.row.token_ids) for job in jobs)
    # The samples of a prompt share its reading.
    cached = sum(job.cached_tokens for job in jobs[:: max(1, len(jobs) // prompts)])
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def head(prefix: str, kind: str, model: ServedModel, created: int, seed: int) -> dict[str, Any]:
    """Return the fields that a response and each chunk of a stream begin with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(16)}",
        "object": kind,
        "created": created,
        "model": model.name,
        "system_fingerprint": model.fingerprint,
        # Not in OpenAI's API: the seed that was given or drawn, for repeating the request.
        "seed": seed,
    }


def mean_logprob(logprobs: Sequence[float]) -> float:
    """Return the mean log-probability of a text's tokens, by which `best_of` chooses."""
    return sum(logprobs) / max(1, len(logprobs))
