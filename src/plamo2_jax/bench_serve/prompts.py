"""Prompts of given lengths, made of the bundled corpus."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from plamo2_jax.bench_serve.client import Client
from plamo2_jax.bench_serve.config import BenchConfig
from plamo2_jax.data.corpus import LANGUAGES, documents

_SAMPLE = 1000
"""Characters of the text that measures the tokens of a character. A server may refuse a text longer than its context."""
_ROUNDS = 4
"""Corrections of the length of a text at most."""


def corpus(language: str | None) -> str:
    """Return all bundled text in a language, or in both, one document of each in turn."""
    texts = [
        [document["text"] for document in documents(each)] for each in ([language] if language else list(LANGUAGES))
    ]
    longest = max(map(len, texts))
    return "\n\n".join(some[i] for i in range(longest) for some in texts if i < len(some))


class PromptMaker:
    """Makes prompts that begin with the same prefix and continue differently.

    Where the server has /tokenize, lengths are in its tokens: exact for /v1/completions, which takes token ids, and to about 1 % for
    chat messages. Elsewhere a token is taken to be a word, and Japanese text to have a word every two characters.

    Attributes:
        unit: "tokens" or "words".
    """

    def __init__(self, client: Client, config: BenchConfig):
        self._client, self._config = client, config
        self._text = corpus(config.language)
        self._rng = np.random.default_rng([config.seed, 1])
        self._characters = 0.0
        self._prefix: str | list[int] = ""
        self.unit = "words"

    async def start(self) -> None:
        """Find out whether the server tokenizes, and make the prefix."""
        sample = self._text[:_SAMPLE]
        tokens = await self._client.tokenize(sample)
        self.unit = "words" if tokens is None else "tokens"
        self._characters = len(sample) / (_words(sample) if tokens is None else len(tokens))
        count = self._config.shared_prefix
        self._prefix = await self._piece(count) if count else ""

    async def make(self, length: int) -> str | list[int]:
        """Return a prompt whose own part has `length` tokens."""
        piece = await self._piece(length)
        if isinstance(piece, list):
            return [*(self._prefix or []), *piece]
        return f"{self._prefix}\n{piece}" if self._prefix else piece

    async def _piece(self, length: int) -> str | list[int]:
        """Return a text of the corpus from a random place on: as ids where the endpoint takes them."""
        ids = self.unit == "tokens" and self._config.endpoint == "completions"
        # From the beginning of a line on; 0 behind the last one.
        start = self._text.find("\n", int(self._rng.integers(len(self._text)))) + 1
        size = max(1, round(length * self._characters))
        for _ in range(_ROUNDS):
            text = self._cut(start, size)
            tokens = await self._client.tokenize(text) if self.unit == "tokens" else None
            found = _words(text) if tokens is None else len(tokens)
            if ids and tokens is not None and found >= length:
                return tokens[:length]
            # Ids are cut from a text that is a little too long.
            wanted = length * 1.1 + 4 if ids else length
            if not ids and abs(found - length) <= max(1, length // 100):
                break
            size = max(1, round(size * wanted / found))
        return tokens[:length] if ids and tokens is not None else text

    def _cut(self, start: int, size: int) -> str:
        """Return `size` characters from a place on; the corpus repeats."""
        text = self._text
        repeated = text * (2 + size // len(text)) if start + size > len(text) else text
        return repeated[start : start + size]


def _words(text: str) -> int:
    """Return the number of words; of Japanese, half the number of characters."""
    japanese = len(re.findall(r"[\u3040-\u30ff\u3400-\u9fff]", text))
    latin = len(re.findall(r"[^\s\u3040-\u30ff\u3400-\u9fff]+", text))
    return max(1, latin + japanese // 2)


def lengths(config: BenchConfig) -> tuple[Sequence[int], Sequence[int]]:
    """Return the numbers of prompt tokens and output tokens of all requests."""
    rng = np.random.default_rng([config.seed, 2])
    return config.prompt_tokens.draw(config.requests, rng), config.output_tokens.draw(config.requests, rng)
