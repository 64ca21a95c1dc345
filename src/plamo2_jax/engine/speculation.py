"""Speculative decoding by prompt lookup: if the last tokens occurred earlier in the row, the tokens after them are the draft.

One forward pass reads all tokens of a draft. Then a token is drawn at each position with the usual random key. The draft is kept up to the
first token that differs from the drawn token. So the result equals plain decoding, except that matrix products with several rows round
differently. The states of the layers advance over the kept tokens only (`Plamo2.features_deferred`).

Source: Saxena, Prompt Lookup Decoding, https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class SpeculationConfig:
    """Settings of speculative decoding.

    Raises:
        PlamoError: a field is out of range.
    """

    drafts: int = 7
    """Maximum number of tokens in a draft."""
    ngram: int = 3
    """Number of last tokens that must occur earlier in the row."""
    max_rows: int = 2
    """Maximum number of running rows for drafting. With more rows, decoding is compute-bound, and drafts cost more than they save."""
    max_pause: int = 64
    """Longest pause of drafting after useless drafts of a row, in tokens. The pause doubles with each useless draft."""

    def __post_init__(self) -> None:
        require(self, "drafts", 1 <= self.drafts <= 15, "from 1 to 15")
        require(self, "ngram", 1 <= self.ngram <= 8, "from 1 to 8")
        require(self, "max_rows", self.max_rows >= 1, "at least 1")
        require(self, "max_pause", self.max_pause >= 0, "at least 0")


class Lookup(struct.PyTreeNode):
    """The state of drafting of each row. Without speculation, l is 0."""

    history: Int[Array, "s l"]
    """All tokens of the row, beginning with the prompt."""
    length: Int[Array, " s"]
    """Number of tokens in `history`."""
    pause: Int[Array, " s"]
    """Length of the last pause, in tokens."""
    paused: Int[Array, " s"]
    """Number of tokens until the row drafts again."""

    def append(self, token: Int[Array, " s"], kept: Bool[Array, " s"]) -> Lookup:
        """Append one token to the rows that keep it."""
        rows, width = jnp.arange(self.history.shape[0]), self.history.shape[1]
        position = jnp.where(kept, self.length, width)
        return self.replace(
            history=self.history.at[rows, position].set(token, mode="drop"),
            length=self.length + kept,
            paused=jnp.maximum(self.paused - kept, 0),
        )

    def judged(self, drafted: Int[Array, " s"], kept: Int[Array, " s"], max_pause: int) -> Lookup:
        """Pause the rows whose draft was useless, which means that fewer than a quarter of its tokens were kept."""
        useless = (drafted > 0) & (4 * kept < drafted)
        pause = jnp.where(useless, jnp.clip(2 * self.pause, 2, max_pause), jnp.where(kept > 0, 0, self.pause))
        return self.replace(pause=pause, paused=jnp.where(useless, pause, self.paused))


def propose(lookup: Lookup, config: SpeculationConfig) -> tuple[Int[Array, "s k"], Int[Array, " s"]]:
    """Find the most recent earlier occurrence of the last `ngram` tokens of each row.

    Returns:
        The tokens after that occurrence, and the length of the draft: 0 if there is no occurrence or the row pauses.
    """
    n, k = config.ngram, config.drafts

    def of_row(history, length):
        width = history.shape[0]
        places = jnp.arange(width)
        last = jax.lax.dynamic_slice(history, (jnp.maximum(length - n, 0),), (n,))
        # Position i is the end of a match if the n tokens that end there equal the last n tokens.
        match = (places >= n - 1) & (places < length - 1)
        for j in range(n):
            match &= jnp.roll(history, n - 1 - j) == last[j]
        found = jnp.max(jnp.where(match, places, -1))
        # A draft that reaches the end of the text goes on as if the text repeated itself from the place on.
        period = jnp.maximum(length - 1 - found, 1)
        draft = jnp.take(history, found + 1 + jnp.arange(k) % period, mode="clip")
        return draft, jnp.where(found >= 0, k, 0)

    drafts, counts = jax.vmap(of_row)(lookup.history, lookup.length)
    return drafts, jnp.where(lookup.paused > 0, 0, counts)
