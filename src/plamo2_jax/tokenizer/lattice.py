"""The encoder's two inner loops: a trie over code points and the cheapest path through the lattice of matching tokens.

Equivalent to the published encoder, an Aho-Corasick automaton walked from the end of the text: every token that starts
at i is found by walking the trie from i, and the same backward recursion chooses among them. The trie's nodes are numbered
level by level with the children of one node side by side and sorted, so flat arrays hold it and a few sorts build it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

UNKNOWN_COST = 10_000_000  # of a code point that is spelled in bytes, once however many bytes it takes
INVALID_COST = 20_000_000  # a token this dear or dearer is never used
CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Trie:
    """Matchable tokens by their code points (k nodes, below the root).

    Attributes:
        root: [0x110000] int32, node of a first code point or -1.
        first_child: [k + 1] int32, the children of node j are first_child[j] to first_child[j + 1].
        label: [k] int32, the code point that leads to a node; sorted among siblings.
        token: [k] int32, id of the token that ends at a node, or -1.
        cost: [k] int64, cost of that token.
        longest: code points in the longest token.
    """

    root: np.ndarray
    first_child: np.ndarray
    label: np.ndarray
    token: np.ndarray
    cost: np.ndarray
    longest: int


def build_trie(tokens: list[str], ids: np.ndarray, costs: np.ndarray) -> Trie:
    """Builds the trie of `tokens[i] for i in ids`, which must be distinct and non-empty; `costs` [v] int64 go by id."""
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
    # Below the first level parents never decrease, so each node's children form one run.
    first = len(levels[0][0])
    first_child = first + np.searchsorted(parents[first:], np.arange(nodes + 1))
    cost = np.where(token >= 0, costs[token], 0)
    return Trie(root, first_child.astype(np.int32), label.astype(np.int32), token, cost.astype(np.int64), depth)


def cheapest_ids(points, root, first_child, label, node_token, node_cost, token_length, byte_ids, window):
    """Token ids of the cheapest segmentation; ties go to the longest token, then to a token before bytes.

    Plain Python that numba compiles as it stands (`compiled_encoder`).

    Args:
        points: [n] int32 code points.
        root: as in `Trie`.
        first_child: as in `Trie`.
        label: as in `Trie`.
        node_token: `Trie.token`, or a copy with some tokens set to -1, which are then not matched.
        node_cost: `Trie.cost`.
        token_length: [v] int32, code points per token.
        byte_ids: [256] int32, id of each byte value.
        window: power of two above the longest token. Only that many costs are alive at a time.

    Returns:
        [m] int32.
    """
    n = len(points)
    mask = window - 1
    costs = np.zeros(window, np.int64)  # of the text from i on, at i modulo the window
    choice = np.empty(n, np.int32)
    count = 0
    for i in range(n - 1, -1, -1):
        best = costs[(i + 1) & mask] + UNKNOWN_COST
        best_token = -1
        end = i + 1
        node = root[points[i]]
        while node >= 0:
            # From short to long with "not dearer": the same choice as long to short with "strictly cheaper".
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


@functools.cache
def compiled_encoder() -> Callable[..., np.ndarray] | None:
    """`cheapest_ids` compiled by numba, cached on disk where a folder is writable; None where numba is not installed."""
    try:
        import numba
    except ImportError:
        return None
    try:
        return numba.njit(cache=True, nogil=True)(cheapest_ids)
    except RuntimeError:  # "no locator available": neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True)(cheapest_ids)
