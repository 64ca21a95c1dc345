"""Padding of the token axis."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def pad_tokens(x: Shaped[Array, "b t *c"], before: int, after: int, mode: str = "constant") -> Shaped[Array, "b s *c"]:
    """Pad the token axis of an array; `mode` is a mode of `jnp.pad`, zeros by default."""
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2), mode=mode)
