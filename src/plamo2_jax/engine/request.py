"""A generation request, its text so far, and its completion."""

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
"""The scheduler ends a row early with the last two."""
TopLogprobs = tuple[tuple[int, float], ...]
"""The most likely tokens at one position with their log-probabilities in nats, the most likely first."""


class Constraint(Protocol):
    """Restricts the token ids that a row may draw, for example to a grammar."""

    def allowed(self) -> np.ndarray:
        """Return the allowed next ids as bits [ceil(v/32)] u32. At least one bit is set.

        Raises:
            PlamoError: no id is allowed. The row fails with this message.
        """
        ...

    def push(self, token: int) -> None:
        """Advance by the token that was drawn."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """The result of one row."""

    text: str | None
    """The new text without control tokens, cut before the stop string. None if the generator has no tokenizer."""
    token_ids: tuple[int, ...]
    """All generated tokens, including the stop id."""
    logprobs: tuple[float, ...]
    """Log-probability of each token in nats, over the tokens that could be drawn, before temperature, filters and penalties."""
    finish_reason: FinishReason
    top_logprobs: tuple[TopLogprobs, ...] | None = None
    """The most likely tokens at the position of each token; None if the request did not ask for them."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to generate. `Generator` and the server validate it."""

    prompt: np.ndarray
    """Token ids [t] i32, at least one."""
    sampling: SamplingConfig
    stop: StopConfig
    stop_ids: tuple[int, ...]
    """Token ids that end the row. The engine does not read `stop.ids`."""
    seed: int
    sample: int
    """Index of the sample among the samples of the prompt. Each sample has its own random key."""
    top_logprobs: int = 0
    """Number of most likely tokens to report at each position, at most MAX_TOP_LOGPROBS."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Values to add to logits, by token id."""
    constraint: Callable[[], Constraint] | None = None
    """Creates the constraint of the row."""
    boundaries: Sequence[int] = ()
    """Increasing token positions where other prompts may continue differently; see `prefill.cut_prompt`."""
    salt: str = ""
    """Requests with different salts do not share cached prefixes."""

    def settings(self, vocab_size: int) -> RowSettings:
        """Return the settings for the compiled functions as NumPy arrays."""
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
    """The tokens and the text of a request so far.

    Attributes:
        token_ids: tokens so far.
        logprobs: their log-probabilities, as in `Completion`.
        top_logprobs: the most likely tokens at each position, if the request asked for them.
        finish_reason: why the row ended; None until it ends.
        constraint: the constraint of the row, or None.
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
        """Whether the row has not ended."""
        return self.finish_reason is None

    def push(self, token: int, logprob: float, top: TopLogprobs = ()) -> str:
        """Add a token, which may end the row. Return the text that is now ready to show.

        Args:
            token: token id.
            logprob: its log-probability in nats.
            top: the most likely tokens at its position.

        Raises:
            PlamoError: the log-probability is not a finite number.
        """
        if not math.isfinite(logprob):
            raise PlamoError(
                f"the model's logits after {len(self.token_ids)} new tokens are not finite: the parameters may be "
                "damaged. Check them with plamo2 inspect --verify"
            )
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
        """End the row early and return the text that was held back."""
        self.finish_reason = reason
        return self._flush()

    def _flush(self) -> str:
        return "" if self._text is None else self._text.flush()

    def completion(self) -> Completion:
        """Return the result of a row that has ended."""
        text = None if self._text is None else self._text.text
        top = tuple(self.top_logprobs) if self.request.top_logprobs else None
        return Completion(text, tuple(self.token_ids), tuple(self.logprobs), self.finish_reason, top)
