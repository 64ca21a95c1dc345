"""Positions of facts in long contexts."""

from __future__ import annotations

import numpy as np


def depths(count: int) -> tuple[float, ...]:
    """Return `count` evenly spaced depths from 0 to 1; 0.5 if `count` is 1."""
    return tuple(np.linspace(0, 1, count).tolist()) if count > 1 else (0.5,)


def depth_label(depth: float) -> str:
    """Return a depth as a label of a plot."""
    return f"{depth:.2f}"
