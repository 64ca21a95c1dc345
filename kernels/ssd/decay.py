"""The log-decay of a token, computed in the same way by every implementation of the scan."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array

# Lower bound of log-decays, in base 2. 2^-160 is 0 in float32, so the bound changes no result. Without it, a huge dt·A of one token would
# leave no significant digits in the running sum for the decays of later tokens.
LEAST_LOG2_DECAY = -160.0
LEAST_LOG_DECAY = LEAST_LOG2_DECAY * math.log(2)


def log_decay(dt: Array, A: Array) -> Array:
    """Return max(dt A, LEAST_LOG_DECAY), the log-decay of each token. A must broadcast to dt. The gradient is 0 below the clamp."""
    return jnp.maximum(dt * A, LEAST_LOG_DECAY)


def is_clamped(dt: Array, A: Array) -> Array:
    """Return where `log_decay` is clamped, for gradients written by hand."""
    return dt * A < LEAST_LOG_DECAY


def masked_exp(mask: Array, exponent: Array) -> Array:
    """Return exp(exponent) where the mask is true, else 0. A masked exponent may be large: across segments, differences of sums are."""
    return jnp.exp(jnp.where(mask, exponent, -jnp.inf))
