"""Reading prompts in pieces of few shapes, on a grid that their own length alone decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.engine.step import empty_cache, prefill
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache

SMALLEST_PIECE = 16
"""Tokens of the smallest piece: below, padding costs less than another compilation."""
# Tokens that short prompts are read together for: enough to fill a matrix product on a CPU, few enough that one prompt alone does not
# wait long for the rows that pad it.
_TOGETHER = 128


def power_of_two(n: int, smallest: int) -> int:
    """The first power of two that is at least n and at least `smallest`, itself one."""
    return max(smallest, 1 << (n - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a prompt is read: pieces of the whole size, then one that is padded at its end."""

    whole: int
    """Pieces of the whole size."""
    last: int
    """Tokens of the last piece; 0: none."""
    rows: int
    """Prompts read together; where there are fewer, the others are padding."""

    @classmethod
    def of(cls, length: int, size: int, slots: int) -> Cut:
        """The cut of a prompt of so many tokens.

        Args:
            length: tokens, perhaps 0.
            size: tokens of a piece, a power of two.
            slots: of the engine; no more prompts are read together.
        """
        whole, rest = divmod(length, size)
        last = power_of_two(rest, SMALLEST_PIECE) if rest else 0
        # A long prompt fills the device by itself.
        together = power_of_two(min(slots, max(1, _TOGETHER // (last or size))), 1) if not whole else 1
        return cls(whole, last, together if last or whole else 1)


def pieces(prompts: Sequence[np.ndarray], cut: Cut, rows: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut prompts of one `Cut` into batches of pieces.

    Args:
        prompts: token ids, at most `rows` of them.
        cut: theirs.
        rows: of each batch; those behind the prompts are padding.
        size: tokens of a whole piece.

    Yields:
        tokens and segment_ids [rows, t] i32, segment 0 where a row is padded; nothing if the prompts are empty.
    """
    tokens, segment_ids = np.zeros((2, rows, cut.whole * size + cut.last), np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
        segment_ids[i, : len(prompt)] = 1
    for start in range(0, tokens.shape[1], size):
        yield tokens[:, start : start + size], segment_ids[:, start : start + size]


def read_prompts(
    model: Plamo2, params: dict, prompts: Sequence[np.ndarray], *, rows: int, max_length: int, prefill_size: int
) -> Cache:
    """Read prompts into a new cache, as the longest of them is cut.

    Args:
        model: the network.
        params: its parameters.
        prompts: token ids [t] i32, perhaps none.
        rows: of the cache; those behind the prompts stay empty.
        max_length: tokens of a row of the cache.
        prefill_size: tokens of a row read at once at most, a power of two.
    """
    cache = empty_cache(model, rows, max_length)
    cut = Cut.of(max(map(len, prompts)), prefill_size, rows)
    for tokens, segment_ids in pieces(prompts, cut, rows, prefill_size):
        cache = prefill(model, params, cache, tokens, segment_ids)
    return cache


def repeat_rows(cache: Cache, times: int) -> Cache:
    """A cache that is not stacked, with every row repeated."""
    return cache if times == 1 else jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), cache)
