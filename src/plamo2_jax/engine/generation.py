"""One request for text under way: prompts are read, then all rows are continued together until each has ended."""

from __future__ import annotations

import dataclasses
import math
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from plamo2_jax.engine.prefill import power_of_two, prefill_pieces
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.step import DecodeState, Vocabulary, decode, empty_cache, prefill, unstack
from plamo2_jax.engine.stop import RowText, StopConfig
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache
from plamo2_jax.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["stop_id", "stop_string", "length"]

_SMALLEST_CACHE = 64
# Periods of layers up to which decoding is compiled without a scan over them: it runs faster, and compiles longer the more they are.
_MOST_UNROLLED = 4


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one row."""

    text: str | None
    """The new text: without control tokens, cut before the stop string. None where the generator has no tokenizer."""
    token_ids: tuple[int, ...]
    """All tokens generated, the stop id included."""
    logprobs: tuple[float, ...]
    """Log-probability of each in nats among the tokens that could be drawn, under the model alone: temperature, filters and penalty
    left aside."""
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class Request:
    """What to generate, checked: see `generator.Generator.stream`."""

    model: Plamo2
    params: dict
    tokenizer: Tokenizer | None
    prompts: tuple[np.ndarray, ...]
    """Rows of ids i32, none empty."""
    sampling: SamplingConfig
    stop: StopConfig
    stop_ids: tuple[int, ...]
    seed: int
    samples: int
    """Rows a prompt."""
    prefill_size: int


class Generation(Iterator[tuple[int, str]]):
    """An iterator of (row, text piece), pieces never empty; nothing is computed before the first is asked for.

    The pieces of a row, joined, are its completion's text.
    """

    def __init__(self, request: Request):
        self._request = request
        self._rows = [_Row(request) for _ in range(len(request.prompts) * request.samples)]
        self._pieces = self._run()

    def __next__(self) -> tuple[int, str]:
        """The next piece of any row.

        Raises:
            ValueError: the model's logits are not finite numbers.
        """
        return next(self._pieces)

    @property
    def tokens_generated(self) -> int:
        """Tokens of all rows so far."""
        return sum(len(row.token_ids) for row in self._rows)

    def results(self) -> list[Completion]:
        """The completions, one a row; generates what is still missing."""
        for _ in self:
            pass
        return [row.completion() for row in self._rows]

    def _run(self) -> Iterator[tuple[int, str]]:
        request, rows = self._request, self._rows
        state, vocabulary, pace, made = start_decoding(request), vocabulary_of(request), _Pace(), 0
        while any(row.alive for row in rows):
            count = min(pace.count, request.stop.max_new_tokens - made)
            begun = time.perf_counter()
            state, tokens, logprobs = decode(
                request.model,
                request.params,
                state,
                vocabulary,
                jnp.int32(count),
                sampling=request.sampling,
                capacity=pace.capacity,
            )
            tokens, logprobs = jax.device_get((tokens, logprobs))
            pace.measured(time.perf_counter() - begun)
            for step in range(count):
                for i, row in enumerate(rows):
                    if row.alive and (piece := row.push(int(tokens[step, i]), float(logprobs[step, i]), i)):
                        yield i, piece
            made += count
            if any(row.finish_reason == "stop_string" for row in rows):
                # Stop strings are seen only here, not by the compiled loop.
                state = state.replace(alive=state.alive & np.array([row.alive for row in rows]))


class _Row:
    """One row's output."""

    def __init__(self, request: Request):
        self._stop, self._stop_ids = request.stop, frozenset(request.stop_ids)
        self._text = None if request.tokenizer is None else RowText(request.tokenizer, request.stop.strings)
        self._logprobs: list[float] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def alive(self) -> bool:
        return self.finish_reason is None

    def push(self, token: int, logprob: float, index: int) -> str:
        """Take a token, perhaps end; returns the text it releases."""
        if not math.isfinite(logprob):
            raise ValueError(
                f"row {index}: the model's logits after {len(self.token_ids)} new tokens are not finite numbers"
            )
        self.token_ids.append(token)
        self._logprobs.append(logprob)
        piece = ""
        if token in self._stop_ids:
            self.finish_reason = "stop_id"
        elif self._text is not None:
            piece = self._text.push(token, may_stop=len(self.token_ids) >= self._stop.min_new_tokens)
            if self._text.stopped:
                self.finish_reason = "stop_string"
        if self.alive and len(self.token_ids) == self._stop.max_new_tokens:
            self.finish_reason = "length"
        if not self.alive and self._text is not None:
            piece += self._text.flush()
        return piece

    def completion(self) -> Completion:
        text = None if self._text is None else self._text.text
        return Completion(text, tuple(self.token_ids), tuple(self._logprobs), self.finish_reason)


class _Pace:
    """How many tokens one dispatch makes: enough to hide its cost, few enough that text keeps coming."""

    capacity = 32
    # Seconds that a reader waits for text, as long as a token takes less.
    interval = 0.1

    def __init__(self):
        self.count = 1
        self._compiled = False

    def measured(self, seconds: float) -> None:
        """Learn from the last dispatch; the first may have compiled and teaches nothing."""
        if self._compiled:
            self.count = max(1, min(self.capacity, int(self.interval * self.count / seconds)))
        self._compiled = True


def start_decoding(request: Request) -> DecodeState:
    """Read the prompts but for their last tokens: those the first step of decoding reads, and it makes the logits."""
    prompts, samples, vocab_size = request.prompts, request.samples, request.model.config.vocab_size
    longest = max(map(len, prompts)) + request.stop.max_new_tokens
    cache = empty_cache(request.model, len(prompts), power_of_two(longest, _SMALLEST_CACHE))
    for tokens, segment_ids in prefill_pieces([prompt[:-1] for prompt in prompts], request.prefill_size):
        cache = prefill(request.model, request.params, cache, tokens, segment_ids)
    seen = None
    if request.sampling.repetition_penalty != 1.0:
        seen = np.zeros((len(prompts), vocab_size), bool)
        for row, prompt in zip(seen, prompts, strict=True):
            row[prompt] = True
        seen = jnp.asarray(seen.repeat(samples, axis=0))
    b = len(prompts) * samples
    cache = repeat_rows(cache, samples)
    if sum(run.count for run in request.model.config.runs) <= _MOST_UNROLLED:
        cache = unstack(cache)
    return DecodeState(
        cache=cache,
        token=jnp.asarray(np.repeat([prompt[-1] for prompt in prompts], samples), jnp.int32),
        alive=jnp.ones((b,), bool),
        seen=seen,
        keys=row_keys(prompts, request.seed, samples),
        step=jnp.int32(0),
    )


def row_keys(prompts: Sequence[np.ndarray], seed: int, samples: int) -> Key[Array, " b"]:
    """A random key a row, made of the seed, the prompt's ids and the sample's number: not of the row's place in the batch.

    Without the prompt, rows of one batch would draw with the same noise and lean to the same tokens.
    """
    # The generator is named: others do not promise a row the same numbers in every batch.
    key = jax.random.key(seed, impl="threefry2x32")
    digests = np.array([zlib.crc32(prompt.astype("<i4").tobytes()) for prompt in prompts], np.uint32)
    of_prompts = jax.vmap(jax.random.fold_in, (None, 0))(key, digests)
    return jax.vmap(jax.random.fold_in)(jnp.repeat(of_prompts, samples), jnp.tile(jnp.arange(samples), len(prompts)))


def vocabulary_of(request: Request) -> Vocabulary:
    """Ids that may be drawn, which rows of the embedding that only pad it are not, and those that end a row."""
    v = request.model.config.vocab_size
    known = v if request.tokenizer is None else request.tokenizer.vocab_size
    stop = np.zeros(v, bool)
    stop[list(request.stop_ids)] = True
    return Vocabulary(jnp.arange(v) < known, jnp.asarray(stop), jnp.int32(request.stop.min_new_tokens))


def repeat_rows(cache: Cache, samples: int) -> Cache:
    """The cache with every row repeated; prompts are read once, however many samples."""
    if samples == 1:
        return cache

    def repeat(axis):
        return lambda array: jnp.repeat(array, samples, axis=axis)

    # Arrays of layers have the axis `layers` first.
    return Cache(jax.tree.map(repeat(1), cache.runs), repeat(0)(cache.count), repeat(0)(cache.segment))
