"""Speculative decoding by prompt lookup: the continuation of an earlier occurrence of the last tokens is the draft.

One forward pass reads all tokens of a draft. The token after each of them is drawn as usual, with the random key of its place. The draft is
kept up to the first token that differs from the drawn token. So the tokens equal the tokens of plain decoding, up to the rounding of
products of several rows. The states of the layers advance over the kept tokens only (`Plamo2.features_deferred`).

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
    """When and how far ahead to draft.

    Raises:
        PlamoError: a field is out of its range.
    """

    drafts: int = 7
    """Largest number of tokens in a draft."""
    ngram: int = 3
    """Number of last tokens that an earlier place must match."""
    max_rows: int = 2
    """No drafts while more rows than this are running: then the products are bound by arithmetic, and drafts cost more than they save."""
    max_pause: int = 64
    """Longest pause of a row after drafts that were not kept, in tokens. The pause doubles with each such draft."""

    def __post_init__(self) -> None:
        require(self, "drafts", 1 <= self.drafts <= 15, "from 1 to 15")
        require(self, "ngram", 1 <= self.ngram <= 8, "from 1 to 8")
        require(self, "max_rows", self.max_rows >= 1, "at least 1")
        require(self, "max_pause", self.max_pause >= 0, "at least 0")


class Lookup(struct.PyTreeNode):
    """What drafting needs to know of each row. Without speculation, l is 0."""

    history: Int[Array, "s l"]
    """All tokens of the row, from the prompt's first on."""
    length: Int[Array, " s"]
    """Number of tokens in `history`."""
    pause: Int[Array, " s"]
    """Length of the last pause, in tokens."""
    paused: Int[Array, " s"]
    """Tokens until the row drafts again."""

    def append(self, token: Int[Array, " s"], kept: Bool[Array, " s"]) -> Lookup:
        """Append one token to the rows that keep it."""
        rows, width = jnp.arange(self.history.shape[0]), self.history.shape[1]
        place = jnp.where(kept, self.length, width)
        return self.replace(
            history=self.history.at[rows, place].set(token, mode="drop"),
            length=self.length + kept,
            paused=jnp.maximum(self.paused - kept, 0),
        )

    def judged(self, drafted: Int[Array, " s"], kept: Int[Array, " s"], max_pause: int) -> Lookup:
        """Pause rows whose draft was useless: fewer than a quarter of its tokens were kept."""
        useless = (drafted > 0) & (4 * kept < drafted)
        pause = jnp.where(useless, jnp.clip(2 * self.pause, 2, max_pause), jnp.where(kept > 0, 0, self.pause))
        return self.replace(pause=pause, paused=jnp.where(useless, pause, self.paused))


def propose(lookup: Lookup, config: SpeculationConfig) -> tuple[Int[Array, "s k"], Int[Array, " s"]]:
    """Find the latest earlier place where the last `ngram` tokens of each row stand.

    Returns:
        The tokens after that place, and how many of them are a draft: 0 where there is no such place or the row pauses.
    """
    n, k = config.ngram, config.drafts

    def of_row(history, length):
        width = history.shape[0]
        places = jnp.arange(width)
        last = jax.lax.dynamic_slice(history, (jnp.maximum(length - n, 0),), (n,))
        # Place i is the end of a match if the n tokens up to it are the last n.
        match = (places >= n - 1) & (places < length - 1)
        for j in range(n):
            match &= jnp.roll(history, n - 1 - j) == last[j]
        found = jnp.max(jnp.where(match, places, -1))
        draft = jnp.take(history, found + 1 + jnp.arange(k), mode="clip")
        return draft, jnp.where(found >= 0, jnp.minimum(length - 1 - found, k), 0)

    drafts, counts = jax.vmap(of_row)(lookup.history, lookup.length)
    return drafts, jnp.where(lookup.paused > 0, 0, counts)
