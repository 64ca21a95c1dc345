"""The fields that completions and chats share: sampling, stops, seeds, number of samples, streaming."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.serve.fields import Fields
from plamo2_jax.serve.output import OutputFormat

MAX_SAMPLES = 128
"""Largest `n` and `best_of`, as in OpenAI's API."""
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
"""Characters of a stop string: each is compared with the end of the text at every token."""
MAX_TOP_K = 1_000_000
_IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "store")


@dataclasses.dataclass(frozen=True)
class GenerationFields:
    """The parameters of a request, without its prompt."""

    sampling: SamplingConfig
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    """Token ids that end the text, besides the model's."""
    ignore_eos: bool
    """Whether the model's own ids that end a text are ignored."""
    min_tokens: int
    seed: int
    """Given, or drawn at random."""
    n: int
    logit_bias: Mapping[int, float]
    cache_salt: str
    priority: int
    stream: bool
    include_usage: bool
    """Whether a stream ends with the usage."""

    def requests(
        self,
        prompt: np.ndarray,
        max_tokens: int,
        *,
        stop_ids: Sequence[int],
        boundaries: Sequence[int],
        salt: str,
        samples: int | None = None,
        top_logprobs: int = 0,
        output: OutputFormat | None = None,
    ) -> list[Request]:
        """Return a request of the engine for each sample of a prompt.

        Args:
            prompt: ids [t] i32.
            max_tokens: tokens of a sample at most.
            stop_ids: ids that end a text of this model.
            boundaries: as in `Request`.
            salt: separates the prefixes of models.
            samples: number of samples; None: `n`.
            top_logprobs: number of most likely tokens to report at each position.
            output: format of the text; None: free text.
        """
        ids = (*(() if self.ignore_eos else stop_ids), *self.stop_token_ids)
        stop = StopConfig(max_tokens, min(self.min_tokens, max_tokens), None, self.stop)
        constraint = None if output is None else output.constraint
        return [
            Request(
                prompt,
                self.sampling,
                stop,
                ids,
                self.seed,
                sample,
                top_logprobs,
                self.logit_bias,
                constraint,
                boundaries,
                f"{salt}\0{self.cache_salt}",
            )
            for sample in range(self.n if samples is None else samples)
        ]


def read_generation_fields(fields: Fields, vocab_size: int) -> GenerationFields:
    """Read the shared fields of a request.

    Args:
        fields: the request.
        vocab_size: number of token ids.

    Raises:
        ApiError: a field has a wrong type or value.
    """
    for name in _IGNORED:
        fields.get(name)
    top_k = fields.integer("top_k", 0, -1, MAX_TOP_K)
    sampling = SamplingConfig(
        temperature=fields.number("temperature", 1.0, 0, 100),
        top_k=top_k if top_k > 0 else None,
        top_p=fields.number("top_p", 1.0, high=1, above=0),
        min_p=fields.number("min_p", 0.0, 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 1e-6, 100),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
    )
    stream = fields.boolean("stream", False)
    options = fields.nested("stream_options")
    if options is not None and not stream:
        raise fields.refuse("stream_options", "given only if stream is true")
    if options is not None:
        options.get("include_obfuscation")
    seed = fields.integer("seed", None, -(1 << 63), (1 << 63) - 1)
    return GenerationFields(
        sampling,
        _stop_strings(fields),
        _stop_ids(fields, vocab_size),
        fields.boolean("ignore_eos", False),
        fields.integer("min_tokens", 0, 0, 1 << 31),
        secrets.randbits(32) if seed is None else seed & 0xFFFFFFFF,
        fields.integer("n", 1, 1, MAX_SAMPLES),
        _logit_bias(fields, vocab_size),
        fields.string("cache_salt", "", MAX_STOP_LENGTH),
        fields.integer("priority", 0, -(1 << 31), 1 << 31),
        stream,
        options is not None and options.boolean("include_usage", False),
    )


def _stop_strings(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    strings = [value] if isinstance(value, str) else [] if value is None else value
    right = isinstance(strings, list) and len(strings) <= MAX_STOP_STRINGS
    if not right or not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_LENGTH for each in strings):
        raise fields.refuse(
            "stop",
            f"a string, or up to {MAX_STOP_STRINGS} strings, none empty or longer than {MAX_STOP_LENGTH} characters",
        )
    return tuple(strings)


def _is_id(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


def _stop_ids(fields: Fields, vocab_size: int) -> tuple[int, ...]:
    allowed = f"an array of token ids from 0 to {vocab_size - 1}"
    ids = fields.items("stop_token_ids", allowed) or []
    if not all(_is_id(each, vocab_size) for each in ids):
        raise fields.refuse("stop_token_ids", allowed)
    return tuple(ids)


def _logit_bias(fields: Fields, vocab_size: int) -> dict[int, float]:
    bias = {}
    for name, value in fields.mapping("logit_bias").items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not (name.isascii() and name.isdigit() and len(name) < 10 and _is_id(int(name), vocab_size) and number):
            raise fields.refuse("logit_bias", f"numbers from -100 to 100 by token id (0 to {vocab_size - 1})")
        bias[int(name)] = float(value)
    return bias
