"""Prefill: read prompts in pieces of few shapes. The prompt alone decides how it is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.engine.prefix_cache import PrefixCache, piece_keys
from plamo2_jax.engine.shardings import committed
from plamo2_jax.engine.snapshot import Page, copied, restore, state_of, take_page
from plamo2_jax.engine.step import empty_cache, prefill
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache

SMALLEST_PIECE = 16
"""Tokens of the smallest piece: below this, padding costs less than another compilation."""
SMALLEST_SPAN = 32
"""Tokens between a boundary and the one before it: below this, reading again costs less than keeping the state."""


def power_of_two(n: int, smallest: int) -> int:
    """Return the first power of two that is at least n and at least `smallest`, itself a power of two."""
    return max(smallest, 1 << (n - 1).bit_length())


def cut_prompt(length: int, size: int, boundaries: Sequence[int] = ()) -> list[int]:
    """Return where the pieces of a prompt end. A longer prompt that begins with this one is cut at the same places.

    A piece has at most `size` tokens. It also ends at a boundary, unless it would have fewer than SMALLEST_SPAN tokens.

    Args:
        length: tokens of the prompt, may be 0.
        size: tokens of a whole piece, a power of two.
        boundaries: rising numbers of tokens after which another prompt may continue differently, such as the ends of chat messages.
    """
    ends, start = [], 0
    for boundary in boundaries:
        if start + SMALLEST_SPAN <= boundary < length:
            ends += [*range(start + size, boundary, size), boundary]
            start = boundary
    return [*ends, *range(start + size, length, size), *([length] if length > start else [])]


def pieces(prompts: Sequence[np.ndarray], rows: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a batch of prompts as its longest prompt is cut. The length of a piece is padded to a power of two.

    Args:
        prompts: token ids, at most `rows` of them.
        rows: rows of each batch; the rows after the prompts are padding.
        size: tokens of a whole piece.

    Yields:
        tokens and segment_ids [rows, t] i32, segment 0 where a row is padded; nothing if all prompts are empty.
    """
    start = 0
    for end in cut_prompt(max(map(len, prompts)), size):
        tokens, segment_ids = np.zeros((2, rows, power_of_two(end - start, SMALLEST_PIECE)), np.int32)
        for i, prompt in enumerate(prompts):
            piece = prompt[start:end]
            tokens[i, : len(piece)] = piece
            segment_ids[i, : len(piece)] = 1
        yield tokens, segment_ids
        start = end


def read_prompts(
    model: Plamo2, params: dict, prompts: Sequence[np.ndarray], *, rows: int, max_length: int, prefill_size: int
) -> Cache:
    """Read a batch of prompts into a new cache.

    Args:
        model: the network.
        params: its parameters.
        prompts: token ids [t] i32, may be empty.
        rows: rows of the cache; the rows after the prompts stay empty.
        max_length: tokens of a row of the cache.
        prefill_size: largest number of tokens of a row read at once, a power of two.
    """
    cache = empty_cache(model, rows, max_length)
    for tokens, segment_ids in pieces(prompts, rows, prefill_size):
        cache = prefill(model, params, cache, tokens, segment_ids)
    return cache


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The state after a prompt without its last token. The first decode step reads that token and computes its logits."""

    cache: Cache
    """Its first row is the prompt's; the others pad the batch to the mesh."""
    prompt: np.ndarray
    """Token ids [t] i32."""
    cached_tokens: int = 0
    """Tokens that a snapshot of the prefix cache held."""


class PromptReader:
    """Reads one prompt, piece by piece, from the longest snapshot of the prefix cache on.

    A prompt is read by itself: in a batch, its bits could depend on its row (jax 0.12 on CPU rounds the last row differently).

    Args:
        model: the network.
        params: its parameters.
        prompt: token ids [t] i32, not empty.
        boundaries: see `cut_prompt`.
        rows: rows of the cache, as many as the mesh needs.
        max_length: tokens of a row of the cache.
        prefill_size: largest number of tokens read at once, a power of two.
        prefix_cache: where snapshots are looked up and kept; None: nowhere.
        salt: prompts of different salts share no snapshots.
    """

    def __init__(
        self,
        model: Plamo2,
        params: dict,
        prompt: np.ndarray,
        *,
        boundaries: Sequence[int] = (),
        rows: int,
        max_length: int,
        prefill_size: int,
        prefix_cache: PrefixCache | None = None,
        salt: str = "",
    ):
        self._model, self._params, self._prompt, self._rows = model, params, prompt, rows
        self._max_length, self._prefixes = max_length, prefix_cache
        self._ends = cut_prompt(len(prompt) - 1, prefill_size, boundaries)
        self._snapshot_ends = {*boundaries, len(prompt) - 1}
        self._keys = [] if prefix_cache is None else piece_keys(prompt, self._ends, salt)
        self._read, snapshot = (0, None) if prefix_cache is None else prefix_cache.longest(self._keys)
        self._pages: list[Page] = []
        self.cached_tokens = 0
        if snapshot is None:
            self._cache = committed(empty_cache(model, rows, max_length))
        else:
            self.cached_tokens, self._pages = snapshot.tokens, list(snapshot.pages)
            self._cache = restore(model, snapshot.state, self._pages, rows=rows, max_length=max_length)

    @property
    def done(self) -> bool:
        """Whether the whole prompt is read."""
        return self._read == len(self._ends)

    def read_piece(self) -> int:
        """Read the next piece; return the number of tokens computed, padding included."""
        start = self._ends[self._read - 1] if self._read else 0
        end = self._ends[self._read]
        tokens, segment_ids = np.zeros((2, self._rows, power_of_two(end - start, SMALLEST_PIECE)), np.int32)
        tokens[0, : end - start] = self._prompt[start:end]
        segment_ids[0, : end - start] = 1
        self._cache = prefill(self._model, self._params, self._cache, tokens, segment_ids)
        self._read += 1
        if self._prefixes is not None:
            self._keep(start, end, min(tokens.shape[1], self._max_length))
        return tokens.shape[1]

    def prefix(self) -> Prefix:
        """Return the state after the prompt; only when `done`."""
        return Prefix(self._cache, self._prompt, self.cached_tokens)

    def _keep(self, start: int, end: int, length: int) -> None:
        keys = self._keys[: self._read]
        self._pages.append(take_page(self._cache, np.int32(start), max_length=self._max_length, length=length))
        if self._prefixes.is_wanted(keys[-1], boundary=end in self._snapshot_ends):
            # The next piece reuses the memory of this cache.
            state = state_of(self._cache, self._max_length)
            self._prefixes.add(keys, end, state if self.done else copied(state), self._pages)


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Repeat every row of a cache whose layers are not stacked."""
    return cache if times == 1 else jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), cache)
