"""Prefill: run prompts through the model in pieces of few shapes. The piece boundaries depend only on the prompt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from plamo2_jax.engine.prefix_cache import PrefixCache, piece_keys
from plamo2_jax.engine.shardings import committed, place_cache
from plamo2_jax.engine.snapshot import Page, copied, restore, state_of, take_page
from plamo2_jax.engine.step import empty_cache, prefill
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache

SMALLEST_PIECE = 16
"""Smallest padded length of a piece, in tokens. Below this, padding costs less than another compilation."""
SMALLEST_SPAN = 32
"""Smallest distance between two boundaries, in tokens. Below this, reading again costs less than keeping the state."""


def power_of_two(n: int, smallest: int) -> int:
    """Return the smallest power of two that is at least n and at least `smallest`, which must be a power of two."""
    return max(smallest, 1 << (n - 1).bit_length())


def cut_prompt(length: int, size: int, boundaries: Sequence[int] = ()) -> list[int]:
    """Return the end positions of the pieces of a prompt. A longer prompt with the same beginning has the same positions there.

    A piece has at most `size` tokens. It also ends at a boundary, if the boundary is at least SMALLEST_SPAN tokens after the last one.

    Args:
        length: number of tokens of the prompt; 0 is allowed.
        size: number of tokens of a full piece, a power of two.
        boundaries: increasing token positions where other prompts may continue differently, such as the ends of chat messages.
    """
    ends, start = [], 0
    for boundary in boundaries:
        if start + SMALLEST_SPAN <= boundary < length:
            ends += [*range(start + size, boundary, size), boundary]
            start = boundary
    return [*ends, *range(start + size, length, size), *([length] if length > start else [])]


def piece_length(n: int) -> int:
    """Return the padded length of a piece of n tokens: a power of two."""
    return power_of_two(n, SMALLEST_PIECE)


def pieces(
    prompts: Sequence[np.ndarray], rows: int, size: int, padded: Callable[[int], int] = piece_length
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut all prompts of a batch at the piece ends of the longest prompt.

    Args:
        prompts: token ids of at most `rows` prompts.
        rows: number of rows of each batch. Rows after the prompts are padding.
        size: number of tokens of a full piece.
        padded: returns the padded length of a piece from its length. Few different lengths mean few compilations.

    Yields:
        tokens and segment_ids [rows, t] i32; the segment is 0 for padding. If all prompts are empty, nothing is yielded.
    """
    start = 0
    for end in cut_prompt(max(map(len, prompts)), size):
        tokens, segment_ids = np.zeros((2, rows, padded(end - start)), np.int32)
        for i, prompt in enumerate(prompts):
            piece = prompt[start:end]
            tokens[i, : len(piece)] = piece
            segment_ids[i, : len(piece)] = 1
        yield tokens, segment_ids
        start = end


def read_prompts(
    model: Plamo2, params: dict, prompts: Sequence[np.ndarray], *, rows: int, max_length: int, prefill_size: int
) -> Cache:
    """Prefill a batch of prompts and return the cache.

    Args:
        model: the network.
        params: its parameters.
        prompts: token ids [t] i32 of each prompt; a prompt may be empty.
        rows: number of rows of the cache. Rows after the prompts stay empty.
        max_length: number of tokens that a row of the cache can hold.
        prefill_size: maximum number of tokens of a row in one forward pass, a power of two.
    """
    cache = empty_cache(model, rows, max_length)
    for tokens, segment_ids in pieces(prompts, rows, prefill_size):
        cache = prefill(model, params, cache, tokens, segment_ids)
    return cache


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The state after a prompt without its last token. The first decode step reads that token and computes its logits."""

    cache: Cache
    """Row 0 is the prompt. The other rows pad the batch to the size of the mesh."""
    prompt: np.ndarray
    """Token ids [t] i32."""
    cached_tokens: int = 0
    """Number of prompt tokens restored from the prefix cache."""


class PromptReader:
    """Prefills one prompt piece by piece, starting from its longest snapshot in the prefix cache.

    A prompt is read alone: in a batch, its bits could depend on its row (jax 0.12 on CPU rounds the last row differently).

    Args:
        model: the network.
        params: its parameters.
        prompt: token ids [t] i32, not empty.
        boundaries: increasing token positions where a piece ends and a snapshot is kept, see `cut_prompt`.
        rows: number of rows of the cache: the number of devices that the rows are sharded over.
        max_length: number of tokens that a row of the cache can hold.
        prefill_size: maximum number of tokens in one forward pass, a power of two.
        prefix_cache: stores the snapshots; None: no snapshots.
        salt: prompts with different salts do not share snapshots.
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
        """Whether the whole prompt has been read."""
        return self._read == len(self._ends)

    def read_piece(self) -> int:
        """Read the next piece and return the number of tokens computed, including padding."""
        start = self._ends[self._read - 1] if self._read else 0
        end = self._ends[self._read]
        tokens, segment_ids = np.zeros((2, self._rows, power_of_two(end - start, SMALLEST_PIECE)), np.int32)
        tokens[0, : end - start] = self._prompt[start:end]
        segment_ids[0, : end - start] = 1
        self._cache = prefill(self._model, self._params, self._cache, tokens, segment_ids)
        self._read += 1
        if self._prefixes is not None:
            self._save_snapshot(start, end, min(tokens.shape[1], self._max_length))
        return tokens.shape[1]

    def prefix(self) -> Prefix:
        """Return the state after the prompt. Call this only when `done` is true."""
        return Prefix(self._cache, self._prompt, self.cached_tokens)

    def _save_snapshot(self, start: int, end: int, length: int) -> None:
        keys = self._keys[: self._read]
        self._pages.append(take_page(self._cache, np.int32(start), max_length=self._max_length, length=length))
        if self._prefixes.is_wanted(keys[-1], boundary=end in self._snapshot_ends):
            # The next piece reuses the memory of this cache, so its state must be copied.
            state = state_of(self._cache, self._max_length)
            self._prefixes.add(keys, end, state if self.done else copied(state), self._pages)


@functools.partial(jax.jit, static_argnames="model")
def take_rows(model: Plamo2, cache: Cache, index: Int[Array, " b"]) -> Cache:
    """Return a new cache with the given rows of a cache, in the given order. The layers of the cache must be unstacked."""
    return place_cache(model.mesh, jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), cache))
