"""Shares of a data source: consecutive elements that one packing shard reads (`data.packing_shards`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class _Elements(Protocol):
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Share:
    """Random access to the elements `start` to `stop` of a source: `len(share)`, `share[i]`.

    Attributes:
        targets: Number of positions in all elements of the share.
    """

    def __init__(self, elements: _Elements, start: int, stop: int, targets: int):
        self._elements, self._start, self._stop = elements, start, stop
        self.targets = targets

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return element `index` of the share."""
        return self._elements[self._start + index]

    def __repr__(self) -> str:
        return f"Share({self._elements!r}, {self._start}, {self._stop})"


def even_range(sizes: np.ndarray, index: int, count: int) -> tuple[int, int]:
    """Return (start, stop) of range `index` of the `count` consecutive ranges with about equal sums of sizes.

    The ranges are disjoint and cover everything. A range is empty if one size is larger than the sum of a range.

    Args:
        sizes: [n] integers, not negative.
        index, count: Index of the range and number of ranges.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    middles = ends - np.asarray(sizes, np.int64) // 2
    # An item belongs to the range that holds its middle.
    start, stop = (int(np.searchsorted(middles, int(ends[-1]) * i // count)) for i in (index, index + 1))
    return (0 if index == 0 else start), (len(ends) if index + 1 == count else stop)
