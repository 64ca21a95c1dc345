"""Shapes of the scan in the layers of the published models, and inputs for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """Sizes of a scan: rows, tokens, heads, features of a head, state of a feature. B and C have one group."""

    b: int
    t: int
    h: int
    p: int
    n: int


TOKENS = 8192
TIMED = {"1B": Shape(1, TOKENS, 32, 128, 64), "8B": Shape(1, TOKENS, 64, 128, 64)}
TIMED_IN_A_DRY_RUN = {"tiny": Shape(1, 64, 4, 16, 16)}


def scan_inputs(shape: Shape) -> dict[str, np.ndarray]:
    """Return x, dt, A, B, C, D and dy, the cotangent of y, as float32. Step sizes and decay rates are those at initialization."""
    b, t, h, p, n = shape
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((b, t, h, p), np.float32),
        "dt": np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (b, t, h))).astype(np.float32),
        "A": -np.arange(1, h + 1, dtype=np.float32),
        "B": rng.standard_normal((b, t, 1, n), np.float32),
        "C": rng.standard_normal((b, t, 1, n), np.float32),
        "D": np.ones(h, np.float32),
        "dy": rng.standard_normal((b, t, h, p), np.float32),
    }


def scan_flops(shape: Shape, chunk: int) -> float:
    """Return the FLOPs of the products of a chunked forward scan; causal halves are counted whole. The backward pass takes twice as many.

    Per chunk of q tokens and head: scores·x (q² p), the output of the entering state and the state at the end (2 q p n); C·Bᵀ (q² n) once
    per group. A multiply-add is two FLOPs.
    """
    b, t, h, p, n = shape
    return 2.0 * b * t * (h * (chunk * p + 2 * p * n) + chunk * n)
