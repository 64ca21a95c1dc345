"""Prefill: read prompts in pieces of few shapes. The length of a prompt alone decides how it is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.engine.step import empty_cache, prefill
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache

SMALLEST_PIECE = 16
"""Tokens of the smallest piece: below this, padding costs less than another compilation."""


def power_of_two(n: int, smallest: int) -> int:
    """Return the first power of two that is at least n and at least `smallest`, itself a power of two."""
    return max(smallest, 1 << (n - 1).bit_length())


def piece_lengths(length: int, size: int) -> list[int]:
    """Return how a prompt is cut: pieces of `size` tokens, then one whose length is a power of two, padded at its end.

    Args:
        length: tokens of the prompt, may be 0.
        size: tokens of a whole piece, a power of two.
    """
    whole, rest = divmod(length, size)
    return [size] * whole + [power_of_two(rest, SMALLEST_PIECE)] * bool(rest)


def pieces(prompts: Sequence[np.ndarray], rows: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a batch of prompts as its longest prompt is cut.

    Args:
        prompts: token ids, at most `rows` of them.
        rows: rows of each batch; the rows after the prompts are padding.
        size: tokens of a whole piece.

    Yields:
        tokens and segment_ids [rows, t] i32, segment 0 where a row is padded; nothing if all prompts are empty.
    """
    lengths = piece_lengths(max(map(len, prompts)), size)
    tokens, segment_ids = np.zeros((2, rows, sum(lengths)), np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
        segment_ids[i, : len(prompt)] = 1
    for start in range(0, tokens.shape[1], size):
        yield tokens[:, start : start + size], segment_ids[:, start : start + size]


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


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Repeat every row of a cache whose layers are not stacked."""
    return cache if times == 1 else jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), cache)
