"""The one rule for a token's log-decay, which every implementation of the scan follows."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array

LEAST_LOG2_DECAY = -160.0
"""Log-decays are clamped here, in base 2. 2^-160 is 0 in float32, so a smaller one changes no result. Without the clamp, one token's huge
dt·A would leave no digits in the running sum for the decays of the tokens after it."""

LEAST_LOG_DECAY = LEAST_LOG2_DECAY * math.log(2)


def log_decay(dt: Array, A: Array) -> Array:
    """Return max(dt A, LEAST_LOG_DECAY), the log-decay of each token; its gradient is 0 below the clamp.

    Args:
        dt: step sizes, of any shape.
        A: decay rates, of a shape that broadcasts to that of `dt`.
    """
    return jnp.maximum(dt * A, LEAST_LOG_DECAY)


def is_clamped(dt: Array, A: Array) -> Array:
    """Return where `log_decay` is clamped, for gradients written by hand."""
    return dt * A < LEAST_LOG_DECAY
