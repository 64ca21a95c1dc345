"""Requests of `/v1/completions`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from plamo2_jax.engine.step import MAX_TOP_LOGPROBS
from plamo2_jax.serve.errors import invalid
from plamo2_jax.serve.fields import Fields
from plamo2_jax.serve.generation_fields import MAX_SAMPLES, GenerationFields, read_generation_fields

MAX_PROMPTS = 1024
"""Maximum number of prompts of a request."""
_DEFAULT_MAX_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class CompletionFields:
    """A request to continue prompts."""

    prompts: tuple[str | np.ndarray, ...]
    """Texts, or ids [t] i32."""
    add_special_tokens: bool
    """Whether a text begins with the beginning-of-document id."""
    max_tokens: int
    """0 with echo: the prompts are scored and nothing is generated."""
    echo: bool
    logprobs: int | None
    """Number of most likely tokens to report at each position; None: no log-probabilities."""
    best_of: int
    """Samples that are generated, of which `n` are returned."""
    generation: GenerationFields


def read_completion(fields: Fields, vocab_size: int) -> CompletionFields:
    """Read a request.

    Raises:
        ApiError: a field has a wrong type or value.
    """
    generation = read_generation_fields(fields, vocab_size)
    if fields.string("suffix"):
        raise invalid(
            "suffix", "suffix is not supported, because PLaMo 2 was not trained to fill in the middle: remove it"
        )
    best_of = fields.integer("best_of", generation.n, 1, MAX_SAMPLES)
    if best_of < generation.n:
        raise fields.refuse("best_of", f"at least n={generation.n}")
    if best_of > generation.n and generation.stream:
        raise fields.refuse("best_of", f"n={generation.n} if stream is true")
    echo = fields.boolean("echo", False)
    return CompletionFields(
        _prompts(fields, vocab_size),
        fields.boolean("add_special_tokens", True),
        fields.integer("max_tokens", _DEFAULT_MAX_TOKENS, 0 if echo else 1, 1 << 31),
        echo,
        fields.integer("logprobs", None, 0, MAX_TOP_LOGPROBS),
        best_of,
        generation,
    )


def _prompts(fields: Fields, vocab_size: int) -> tuple[str | np.ndarray, ...]:
    value: Any = fields.get("prompt")
    if value is None or isinstance(value, str):
        return (value or "",)
    prompts = value
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        prompts = [value]
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MAX_PROMPTS:
        raise fields.refuse("prompt", f"a string, token ids, or an array of 1 to {MAX_PROMPTS} of them")
    return tuple(each if isinstance(each, str) else _ids(fields, each, vocab_size) for each in prompts)


def _ids(fields: Fields, value: Any, vocab_size: int) -> np.ndarray:
    right = isinstance(value, list) and all(type(each) is int and 0 <= each < vocab_size for each in value)
    if not right or not value:
        raise fields.refuse("prompt", f"text, or at least one token id from 0 to {vocab_size - 1}")
    return np.array(value, np.int32)
