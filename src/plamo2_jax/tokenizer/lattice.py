"""The two inner loops of the encoder: a trie over code points, and the cheapest path through the lattice of matching tokens.

The result is the same as from the published encoder, an Aho-Corasick automaton that runs from the end of the text: walking the trie from i
finds every token that starts at i, and the same backward recursion chooses among them. Trie nodes are numbered level by level, with the
children of a node adjacent and sorted, so the trie is stored in flat arrays and built by a few sorts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plamo2_jax.user_cache import compile_function

UNKNOWN_COST = 10_000_000  # cost of a code point that is spelled in bytes, independent of the number of bytes
INVALID_COST = 20_000_000  # a token with this cost or a higher one is never used
CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Trie:
    """Trie of the matchable tokens by their code points, with k nodes below the root.

    Attributes:
        root: [0x110000] int32, node of a first code point, or -1.
        first_child: [k + 1] int32, the children of node j are first_child[j] to first_child[j + 1].
        label: [k] int32, code point that leads to a node; sorted among siblings.
        token: [k] int32, id of the token that ends at a node, or -1.
        cost: [k] int64, cost of that token.
        longest: Number of code points in the longest token.
    """

    root: np.ndarray
    first_child: np.ndarray
    label: np.ndarray
    token: np.ndarray
    cost: np.ndarray
    longest: int


def build_trie(tokens: list[str], ids: np.ndarray, costs: np.ndarray) -> Trie:
    """Build the trie of `tokens[i] for i in ids`, which must be distinct and not empty. `costs` [v] int64 are indexed by id."""
    ids = ids.astype(np.int64)
    lengths = np.array([len(tokens[i]) for i in ids], np.int64)
    points = np.frombuffer("".join(tokens[i] for i in ids).encode("utf-32-le"), "<i4")
    offsets = np.cumsum(lengths) - lengths
    parent = np.zeros(len(ids), np.int64)
    levels: list[tuple[np.ndarray, ...]] = []
    nodes = depth = 0
    while len(ids):
        edges, which = np.unique(parent * CODE_POINTS + points[offsets + depth], return_inverse=True)
        ends = lengths == depth + 1
        token = np.full(len(edges), -1, np.int32)
        token[which[ends]] = ids[ends]
        levels.append((edges // CODE_POINTS, edges % CODE_POINTS, token))
        parent, ids, lengths, offsets = ((nodes + which)[~ends], ids[~ends], lengths[~ends], offsets[~ends])
        nodes += len(edges)
        depth += 1
    root = np.full(CODE_POINTS, -1, np.int32)
    if not levels:
        empty = np.zeros(0, np.int32)
        return Trie(root, np.zeros(1, np.int32), empty, empty, np.zeros(0, np.int64), 0)
    root[levels[0][1]] = np.arange(len(levels[0][1]))
    parents, label, token = (np.concatenate(part) for part in zip(*levels, strict=True))
    # Below the first level, parent numbers never decrease, so the children of each node are adjacent.
    first = len(levels[0][0])
    first_child = first + np.searchsorted(parents[first:], np.arange(nodes + 1))
    cost = np.where(token >= 0, costs[token], 0)
    return Trie(root, first_child.astype(np.int32), label.astype(np.int32), token, cost.astype(np.int64), depth)


def cheapest_ids(points, root, first_child, label, node_token, node_cost, token_length, byte_ids, window):
    """Return the token ids of the cheapest segmentation. With equal costs, the longest token wins, and a token wins over bytes.

    This is plain Python that numba can compile without changes (`compiled_encoder`).

    Args:
        points: [n] int32 code points.
        root, first_child, label: Arrays of `Trie`.
        node_token: `Trie.token`, or a copy with -1 for tokens that must not be matched.
        node_cost: `Trie.cost`.
        token_length: [v] int32, number of code points of each token.
        byte_ids: [256] int32, id of each byte value.
        window: Power of two above the length of the longest token. Only this many costs are stored at a time.

    Returns:
        [m] int32.
    """
    n = len(points)
    mask = window - 1
    costs = np.zeros(window, np.int64)  # cost of the text from i to its end, at index i modulo window
    choice = np.empty(n, np.int32)
    count = 0
    for i in range(n - 1, -1, -1):
        best = costs[(i + 1) & mask] + UNKNOWN_COST
        best_token = -1
        end = i + 1
        node = root[points[i]]
        while node >= 0:
            # From short to long with <= gives the same choice as from long to short with <.
            token = node_token[node]
            if token >= 0:
                cost = costs[end & mask] + node_cost[node]
                if cost <= best:
                    best = cost
                    best_token = token
            low = first_child[node]
            stop = first_child[node + 1]
            node = -1
            if end < n and low < stop:
                wanted = points[end]
                high = stop
                while low < high:
                    middle = (low + high) >> 1
                    if label[middle] < wanted:
                        low = middle + 1
                    else:
                        high = middle
                if low < stop and label[low] == wanted:
                    node = low
                    end += 1
        costs[i & mask] = best
        choice[i] = best_token

    i = 0
    while i < n:
        token = choice[i]
        if token >= 0:
            count += 1
            i += token_length[token]
        else:
            point = points[i]
            count += 1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000)
            i += 1

    ids = np.empty(count, np.int32)
    m = 0
    i = 0
    while i < n:
        token = choice[i]
        if token >= 0:
            ids[m] = token
            m += 1
            i += token_length[token]
            continue
        point = points[i]
        i += 1
        if point < 0x80:
            ids[m] = byte_ids[point]
            m += 1
            continue
        extra = 1 + (point >= 0x800) + (point >= 0x10000)  # continuation bytes after the leading one
        ids[m] = byte_ids[((0xFF00 >> (extra + 1)) & 0xFF) | (point >> (6 * extra))]
        m += 1
        for k in range(extra - 1, -1, -1):
            ids[m] = byte_ids[0x80 | ((point >> (6 * k)) & 0x3F)]
            m += 1
    return ids


def compiled_encoder() -> Callable[..., np.ndarray] | None:
    """Return `cheapest_ids` compiled by numba and cached on disk if possible, or None if numba is not installed."""
    try:
        return compile_function(cheapest_ids)
    except ImportError:
        return None
