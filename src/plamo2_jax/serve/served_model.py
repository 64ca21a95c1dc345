"""A model as the server knows it: its name, its text, and its scheduler."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from plamo2_jax.engine.scheduler import Scheduler
from plamo2_jax.serve.errors import ApiError, invalid
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class ServedModel:
    """One entry of `/v1/models`. Only the engine thread uses the scheduler."""

    name: str
    scheduler: Scheduler
    tokenizer: Tokenizer
    vocab_size: int
    """Rows of the model's embedding, at least as many as the tokenizer's."""
    template: ChatTemplate | None
    """Chat template; None: the model cannot chat."""
    max_length: int
    """Tokens of a prompt and its continuation at most."""
    document_stop_ids: tuple[int, ...]
    """Ids that end a completion."""
    answer_stop_ids: tuple[int, ...]
    """Ids that end an answer of a chat."""
    fingerprint: str
    """Changes whenever the same request with the same seed may give another text."""
    created: int
    """Seconds since 1970 at which the model was loaded."""
    parent: str | None = None
    """Name of the base of an adapter."""

    def require_room(self, prompt: np.ndarray, max_tokens: int | None, param: str) -> int:
        """Return the number of tokens that a sample may have.

        Args:
            prompt: its ids [t].
            max_tokens: number asked for; None: all that fit.
            param: the field of the prompt, for the error.

        Raises:
            ApiError: prompt and continuation are longer than the model's context.
        """
        room = self.max_length - len(prompt)
        wanted = max(1, room) if max_tokens is None else max_tokens
        if wanted > room:
            raise invalid(
                param,
                f"the model {self.name} has a context of {self.max_length} tokens; {len(prompt)} of the prompt and {wanted} of the "
                "answer are more. Shorten the prompt or lower max_tokens",
                "context_length_exceeded",
            )
        return wanted

    def boundaries(self, prompt: np.ndarray) -> tuple[int, ...]:
        """Return the places of a prompt before its control tokens, where the messages of a chat begin and end.

        They depend on the tokens alone, so the prompt of a conversation's next turn has the same ones.
        """
        return tuple(int(place) for place in np.flatnonzero(np.isin(prompt, self._control_ids)) if place > 0)

    @functools.cached_property
    def longest_token(self) -> int:
        """Characters of the longest token that is text."""
        tokenizer = self.tokenizer
        return max(len(token) for i, token in enumerate(tokenizer.tokens) if not tokenizer.is_special(i))

    @functools.cached_property
    def _control_ids(self) -> np.ndarray:
        return np.flatnonzero([self.tokenizer.is_special(i) for i in range(self.tokenizer.vocab_size)])


def unknown_model(name: str, known: list[str]) -> ApiError:
    """Return the error of a model that is not served."""
    return ApiError(
        404,
        f"the model {name[:100]!r} does not exist: it must be one of {', '.join(known)}",
        param="model",
        code="model_not_found",
    )
