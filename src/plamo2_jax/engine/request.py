"""One text to generate: what is asked for, and what has come of it so far."""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Literal

import numpy as np

from plamo2_jax.engine.sampling import RowSampling, SamplingConfig
from plamo2_jax.engine.step import RowSettings
from plamo2_jax.engine.stop import RowText, StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["stop_id", "stop_string", "length"]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one row."""

    text: str | None
    """The new text: without control tokens, cut before the stop string. None where the generator has no tokenizer."""
    token_ids: tuple[int, ...]
    """All tokens generated, the stop id included."""
    logprobs: tuple[float, ...]
    """Log-probability of each in nats among the tokens that could be drawn, under the model alone: temperature, filters and penalties
    left aside."""
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class Request:
    """What to generate for one row, checked."""

    prompt: np.ndarray
    """Token ids [t] i32, at least one."""
    sampling: SamplingConfig
    stop: StopConfig
    stop_ids: tuple[int, ...]
    """Ids that end the row, whatever `stop.ids` says."""
    seed: int
    sample: int
    """Number among the samples of its prompt: each has a random key of its own."""

    def settings(self, vocab_size: int) -> RowSettings:
        """Return what the compiled functions need, as NumPy arrays."""
        stop = np.zeros(vocab_size, bool)
        stop[list(self.stop_ids)] = True
        checksum = zlib.crc32(self.prompt.astype("<i4").tobytes())
        return RowSettings(
            RowSampling.of(self.sampling),
            np.array([self.seed, checksum, self.sample], np.uint32),
            np.int32(self.stop.max_new_tokens),
            np.int32(self.stop.min_new_tokens),
            stop,
        )


class Row:
    """What has come of a request."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None):
        self.request = request
        self._stop_ids = frozenset(request.stop_ids)
        self._text = None if tokenizer is None else RowText(tokenizer, request.stop.strings)
        self._logprobs: list[float] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def alive(self) -> bool:
        """Whether tokens are still to come."""
        return self.finish_reason is None

    def push(self, token: int, logprob: float) -> str:
        """Take a token, perhaps end; return the text that it releases.

        Raises:
            ValueError: the log-probability is not a finite number.
        """
        if not math.isfinite(logprob):
            raise PlamoError(f"the model's logits after {len(self.token_ids)} new tokens are not finite numbers")
        self.token_ids.append(token)
        self._logprobs.append(logprob)
        stop, piece = self.request.stop, ""
        if token in self._stop_ids:
            self.finish_reason = "stop_id"
        elif self._text is not None:
            piece = self._text.push(token, may_stop=len(self.token_ids) >= stop.min_new_tokens)
            if self._text.stopped:
                self.finish_reason = "stop_string"
        if self.alive and len(self.token_ids) == stop.max_new_tokens:
            self.finish_reason = "length"
        if not self.alive and self._text is not None:
            piece += self._text.flush()
        return piece

    def completion(self) -> Completion:
        """Return the result of a row that has ended."""
        text = None if self._text is None else self._text.text
        return Completion(text, tuple(self.token_ids), tuple(self._logprobs), self.finish_reason)
