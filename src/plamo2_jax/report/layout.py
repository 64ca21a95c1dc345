"""Place the nodes of a directed acyclic graph in rows, so that edges point down and few cross (Sugiyama, Tagawa & Toda, 1981)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

_SWEEPS = 12
_BEND_WEIGHT = 4.0
"""Weight of the bends of long edges among the positions, relative to nodes. A high weight makes long edges straight."""

_Point = str | tuple[str, str, int]
"""A node, or the bend of an edge (from, to) in a row that the edge crosses."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Positions of nodes and edges, in pixels."""

    width: float
    rows: int
    places: dict[str, tuple[float, int]]
    """Node → center of the node from the left, and its row."""
    edges: dict[tuple[str, str], list[float]]
    """Edge → its positions from the left, one for each row from the row of its start to the row of its end."""


def place(before: Mapping[str, Sequence[str]], node_width: float, gap: float) -> Layout:
    """Place a graph.

    An edge that other edges imply is omitted: if b follows a, and c follows a and b, the edge from a to c is not drawn.

    Args:
        before: node → the nodes that it follows. Each node stands after the nodes that it follows.
        node_width: width of a node in pixels.
        gap: smallest distance between neighbors in pixels.
    """
    edges = _reduced(before)
    level = _levels(before, edges)
    rows: list[list[_Point]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for name in before:
        rows[level[name]].append(name)
    above: dict[_Point, list[_Point]] = {}
    below: dict[_Point, list[_Point]] = {}
    paths: dict[tuple[str, str], list[_Point]] = {}
    for start, end in edges:
        bends: list[_Point] = [(start, end, row) for row in range(level[start] + 1, level[end])]
        for bend in bends:
            rows[bend[2]].append(bend)
        path = paths[start, end] = [start, *bends, end]
        for first, second in itertools.pairwise(path):
            above.setdefault(second, []).append(first)
            below.setdefault(first, []).append(second)
    rows = _ordered(rows, above, below)
    widths = {point: node_width if isinstance(point, str) else 0.0 for row in rows for point in row}
    x = _positions(rows, above, below, widths, gap)
    left = min((x[point] - widths[point] / 2 for point in x), default=0.0)
    right = max((x[point] + widths[point] / 2 for point in x), default=0.0)
    return Layout(
        right - left,
        len(rows),
        {name: (x[name] - left, level[name]) for name in before},
        {edge: [x[point] - left for point in path] for edge, path in paths.items()},
    )


def _reduced(before: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return the edges that no other edges imply."""
    ancestors: dict[str, set[str]] = {}
    for name, direct in before.items():
        ancestors[name] = set(direct).union(*(ancestors[each] for each in direct))
    return [
        (each, name)
        for name, direct in before.items()
        for each in dict.fromkeys(direct)
        if not any(each in ancestors[other] for other in direct)
    ]


def _levels(before: Mapping[str, Sequence[str]], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return the row of each node: the longest way to it. A node that follows no other stands above its first reader."""
    level: dict[str, int] = {}
    for name, direct in before.items():
        level[name] = max((level[each] + 1 for each in direct), default=0)
    for name, direct in before.items():
        readers = [level[end] for start, end in edges if start == name]
        if not direct and readers:
            level[name] = min(readers) - 1
    return level


def _ordered(
    rows: list[list[_Point]], above: Mapping[_Point, list[_Point]], below: Mapping[_Point, list[_Point]]
) -> list[list[_Point]]:
    """Sort each row by the mean place of its neighbors, down and up again; return the order with the fewest crossings."""
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        neighbors = above if down else below
        order = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for number in order:
            place_of = {point: i for i, point in enumerate(rows[number - 1 if down else number + 1])}
            now = {point: float(i) for i, point in enumerate(rows[number])}
            means = {
                point: sum(place_of[each] for each in found) / len(found) if (found := neighbors.get(point)) else at
                for point, at in now.items()
            }
            rows[number] = sorted(rows[number], key=means.__getitem__)
        if (crossings := _crossings(rows, below)) < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _crossings(rows: Sequence[Sequence[_Point]], below: Mapping[_Point, list[_Point]]) -> int:
    total = 0
    for row, after in itertools.pairwise(rows):
        place_of = {point: i for i, point in enumerate(after)}
        ends = [sorted(place_of[each] for each in below.get(point, ())) for point in row]
        flat = [end for one in ends for end in one]
        total += sum(flat[i] > later for i in range(len(flat)) for later in flat[i + 1 :])
    return total


def _positions(
    rows: Sequence[Sequence[_Point]],
    above: Mapping[_Point, list[_Point]],
    below: Mapping[_Point, list[_Point]],
    widths: Mapping[_Point, float],
    gap: float,
) -> dict[_Point, float]:
    """Move each point towards the mean of its neighbors, without changing the order of a row."""
    x: dict[_Point, float] = {}
    offsets = []
    for row in rows:
        at, steps = 0.0, []
        for i, point in enumerate(row):
            at += 0.0 if i == 0 else (widths[row[i - 1]] + widths[point]) / 2 + gap
            steps.append(at)
        offsets.append(steps)
        x |= {point: step - at / 2 for point, step in zip(row, steps, strict=True)}
    for sweep in range(_SWEEPS):
        order = range(len(rows)) if sweep % 2 == 0 else range(len(rows) - 1, -1, -1)
        for number in order:
            row = rows[number]
            wanted = []
            for point, step in zip(row, offsets[number], strict=True):
                near = [*above.get(point, ()), *below.get(point, ())]
                wanted.append((sum(x[each] for each in near) / len(near) if near else x[point]) - step)
            weights = [1.0 if isinstance(point, str) else _BEND_WEIGHT for point in row]
            for point, step, moved in zip(row, offsets[number], _nondecreasing(wanted, weights), strict=True):
                x[point] = moved + step
    return x


def _nondecreasing(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the closest nondecreasing values in the sense of weighted least squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, total, count = blocks.pop()
            joint = total + block[1]
            block = ((mean * total + block[0] * block[1]) / joint, joint, count + block[2])
        blocks.append(block)
    return [mean for mean, _, count in blocks for _ in range(count)]
