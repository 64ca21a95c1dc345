"""One text to generate: the request, and the text so far."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from plamo2_jax.engine.sampling import RowSampling, SamplingConfig
from plamo2_jax.engine.step import MAX_TOP_LOGPROBS, RowSettings
from plamo2_jax.engine.stop import RowText, StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["stop_id", "stop_string", "length", "cancelled", "deadline"]
"""The last two end a row of the scheduler before its time."""
TopLogprobs = tuple[tuple[int, float], ...]
"""The likeliest tokens at one place, the likeliest first, each with its log-probability in nats."""


class Constraint(Protocol):
    """Decides which ids a row may draw, such as those that a grammar allows."""

    def allowed(self) -> np.ndarray:
        """Return the ids that may come next as bits [ceil(v/32)] u32; at least one is set.

        Raises:
            PlamoError: no id may come next; the row fails with this message.
        """
        ...

    def push(self, token: int) -> None:
        """Take the token that was drawn."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one row."""

    text: str | None
    """The new text: without control tokens, cut before the stop string. None where the generator has no tokenizer."""
    token_ids: tuple[int, ...]
    """All tokens generated, the stop id included."""
    logprobs: tuple[float, ...]
    """Log-probability of each token in nats, among the tokens that could be drawn, before temperature, filters and penalties."""
    finish_reason: FinishReason
    top_logprobs: tuple[TopLogprobs, ...] | None = None
    """For each token the likeliest tokens at its place; None if the request asked for none."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to generate. `Generator` and the server check it before it comes here."""

    prompt: np.ndarray
    """Token ids [t] i32, at least one."""
    sampling: SamplingConfig
    stop: StopConfig
    stop_ids: tuple[int, ...]
    """Ids that end the row, whatever `stop.ids` says."""
    seed: int
    sample: int
    """Number among the samples of its prompt: each has a random key of its own."""
    top_logprobs: int = 0
    """Number of likeliest tokens to report at each place, at most MAX_TOP_LOGPROBS."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Added to the logits of some ids."""
    constraint: Callable[[], Constraint] | None = None
    """Makes the constraint of the row."""
    boundaries: Sequence[int] = ()
    """Rising numbers of prompt tokens after which other prompts may continue differently; see `prefill.cut_prompt`."""
    salt: str = ""
    """Requests of different salts share no prefix."""

    def settings(self, vocab_size: int) -> RowSettings:
        """Return what the compiled functions need, as NumPy arrays."""
        stop = np.zeros(vocab_size, bool)
        stop[list(self.stop_ids)] = True
        bias = np.zeros(vocab_size, np.float32)
        bias[list(self.logit_bias)] = list(self.logit_bias.values())
        checksum = zlib.crc32(self.prompt.astype("<i4").tobytes())
        return RowSettings(
            RowSampling.of(self.sampling),
            np.array([self.seed, checksum, self.sample], np.uint32),
            np.int32(self.stop.max_new_tokens),
            np.int32(self.stop.min_new_tokens),
            stop,
            np.int32(min(self.top_logprobs, MAX_TOP_LOGPROBS)),
            np.bool_(bool(self.logit_bias)),
            bias,
        )


class Row:
    """The text of a request so far.

    Attributes:
        token_ids: tokens so far.
        logprobs: their log-probabilities, as in `Completion`.
        top_logprobs: the likeliest tokens at their places, if the request asked for them.
        finish_reason: why the row ended; None while tokens are still to come.
        constraint: the row's constraint, None if it has none.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None):
        self.request = request
        self._stop_ids = frozenset(request.stop_ids)
        self._text = None if tokenizer is None else RowText(tokenizer, request.stop.strings)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[TopLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.constraint = request.constraint() if request.constraint else None

    @property
    def alive(self) -> bool:
        """Whether tokens are still to come."""
        return self.finish_reason is None

    def push(self, token: int, logprob: float, top: TopLogprobs = ()) -> str:
        """Take a token, perhaps end; return the text that it releases.

        Args:
            top: the likeliest tokens at its place.

        Raises:
            PlamoError: the log-probability is not a finite number.
        """
        if not math.isfinite(logprob):
            raise PlamoError(f"the model's logits after {len(self.token_ids)} new tokens are not finite numbers")
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.top_logprobs.append(top)
        if self.constraint is not None:
            self.constraint.push(token)
        stop, piece = self.request.stop, ""
        if token in self._stop_ids:
            self.finish_reason = "stop_id"
        elif self._text is not None:
            piece = self._text.push(token, may_stop=len(self.token_ids) >= stop.min_new_tokens)
            if self._text.stopped:
                self.finish_reason = "stop_string"
        if self.alive and len(self.token_ids) == stop.max_new_tokens:
            self.finish_reason = "length"
        return piece if self.alive else piece + self._flush()

    def end(self, reason: FinishReason) -> str:
        """End the row before its time; return the text that was held back."""
        self.finish_reason = reason
        return self._flush()

    def _flush(self) -> str:
        return "" if self._text is None else self._text.flush()

    def completion(self) -> Completion:
        """Return the result of a row that has ended."""
        text = None if self._text is None else self._text.text
        top = tuple(self.top_logprobs) if self.request.top_logprobs else None
        return Completion(text, tuple(self.token_ids), tuple(self.logprobs), self.finish_reason, top)
