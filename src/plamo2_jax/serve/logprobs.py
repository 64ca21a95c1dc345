"""Log-probabilities in the forms of OpenAI's two endpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from plamo2_jax.tokenizer.tokenizer import StreamDecoder, Tokenizer

_LOWEST = -9999.0
"""Value for the logarithm of 0, which JSON cannot represent, as in OpenAI's API."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""Return the text of a token. Bytes that are no whole character are written as in OpenAI's API: `bytes:\xe7\x8c`."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """A token, its log-probability, and the most likely tokens at its position."""

    token: int
    logprob: float | None
    """None: nothing comes before the token."""
    top: Sequence[tuple[int, float]]


class LegacyLogprobs:
    """The `logprobs` of `/v1/completions`, of a text that arrives in pieces.

    Args:
        tokenizer: for the texts of tokens.
        offset: characters before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0):
        self._tokenizer, self._offset = tokenizer, offset
        self._decoder = StreamDecoder(tokenizer, skip_control=True)

    def push(self, scores: Iterable[TokenScore]) -> dict[str, Any]:
        """Return the object for the next tokens."""
        tokens, logprobs, tops, offsets = [], [], [], []
        for score in scores:
            text = token_text(self._tokenizer, score.token)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(score.token))
            if score.logprob is None:
                logprobs.append(None)
                tops.append(None)
                continue
            logprob = max(score.logprob, _LOWEST)
            top: dict[str, float] = {}
            # Two tokens may have one text: the likelier counts, so that the largest value is the likeliest token's.
            for other, value in [*score.top, (score.token, logprob)]:
                name = token_text(self._tokenizer, other)
                top[name] = max(value, top.get(name, _LOWEST))
            logprobs.append(logprob)
            tops.append(top)
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def join_legacy(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the `logprobs` of two texts, one behind the other."""
    return {name: [*first[name], *second[name]] for name in first}


def chat_logprobs(tokenizer: Tokenizer, scores: Iterable[TokenScore]) -> list[dict[str, Any]]:
    """Return `logprobs.content` of `/v1/chat/completions`."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = None if tokenizer.is_special(token) else list(tokenizer.token_bytes(token))
        return {"token": token_text(tokenizer, token), "logprob": max(logprob, _LOWEST), "bytes": data}

    return [
        {**entry(score.token, score.logprob), "top_logprobs": [entry(*other) for other in score.top]}
        for score in scores
    ]
