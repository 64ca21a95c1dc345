"""Cutting prompts of unequal length into pieces of few shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

SMALLEST_PIECE = 16
"""Tokens of the smallest piece: below, padding costs less than another compilation."""


def power_of_two(n: int, smallest: int) -> int:
    """The first power of two that is at least n and at least `smallest`, itself one."""
    return max(smallest, 1 << (n - 1).bit_length())


def prefill_pieces(prompts: Sequence[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut rows of ids into batches of pieces.

    Padding leads, so that all rows end together: only the first piece has another length than `size`, a power of two.

    Args:
        prompts: b rows of ids, unequally long, perhaps empty.
        size: tokens of a piece, a power of two.

    Yields:
        tokens and segment_ids [b, t] i32, segment 0 where a row is padded; nothing if all rows are empty.
    """
    longest = max(map(len, prompts))
    whole, rest = divmod(longest, size)
    first = power_of_two(rest, SMALLEST_PIECE) if rest else 0
    total = first + whole * size
    tokens, segment_ids = np.zeros((2, len(prompts), total), np.int32)
    for i, prompt in enumerate(prompts):
        start = total - len(prompt)
        tokens[i, start:] = prompt
        segment_ids[i, start:] = 1
    edges = [0] * bool(first) + list(range(first, total + 1, size))
    for start, end in itertools.pairwise(edges):
        yield tokens[:, start:end], segment_ids[:, start:end]
