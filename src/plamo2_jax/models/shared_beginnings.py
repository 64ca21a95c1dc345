"""Groups of contexts with the same beginning, such as the examples before all questions of a task. The beginning is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefill import read_prompts, take_rows
from plamo2_jax.model.cache import Cache

# Shorter beginnings are read again: this costs less than another compilation.
_SMALLEST = 32


@dataclasses.dataclass(frozen=True)
class Beginning:
    """The state after the tokens with which several contexts begin."""

    cache: Cache
    """Cache with one row."""
    tokens: int
    """Number of tokens read."""
    max_length: int
    """Number of tokens that a row of the cache can hold."""

    @classmethod
    def read(cls, generator: Generator, ids: np.ndarray, max_length: int) -> Beginning:
        """Read token ids [t]."""
        cache = read_prompts(
            generator.model, generator.params, [ids], rows=1, max_length=max_length, prefill_size=generator.prefill_size
        )
        return cls(cache, len(ids), max_length)

    def rows(self, generator: Generator, count: int) -> Cache:
        """Return a new cache with this state in all rows. Prefill reuses the memory of its cache, so the state is copied."""
        return take_rows(generator.model, self.cache, np.zeros(count, np.int32))


def group_contexts(contexts: Sequence[np.ndarray]) -> list[tuple[list[int], int]]:
    """Group contexts by their beginnings.

    In the order of their token ids, two neighbors are in the same group if they share at least half of the longer one.

    Args:
        contexts: token ids [t] of each context, not empty.

    Returns:
        The indices of the members of each group, and the number of tokens at their beginning that is read once, 0 or at least 32. The last
        token of a context is never one of them. Contexts that share too little with others are one group, with 0 tokens.
    """
    order = sorted(range(len(contexts)), key=lambda i: contexts[i].astype(">u4").tobytes())
    groups: list[tuple[list[int], int]] = []
    for i in order:
        if groups:
            members, shared = groups[-1]
            # The contexts are sorted, so the members share what the first and the last of them share.
            common = min(shared, _shared(contexts[members[-1]], contexts[i]))
            if common >= max(_SMALLEST, len(contexts[i]) // 2, len(contexts[members[-1]]) // 2):
                groups[-1] = ([*members, i], common)
                continue
        groups.append(([i], len(contexts[i]) - 1))
    alone = [i for members, _ in groups if len(members) == 1 for i in members]
    found = [group for group in groups if len(group[0]) > 1]
    return [*found, (alone, 0)] if alone else found


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Return the number of tokens before the first difference, without the last token of either."""
    n = min(len(a), len(b)) - 1
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n
