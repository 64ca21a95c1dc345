"""TrainState: everything a train step changes, as one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint must hold, besides the position in the data, for a run to go on as if it had never stopped."""

    step: jax.Array
    """Number of updates made so far, int32."""
    params: Any
    """Master parameters, float32."""
    opt_state: optax.OptState
    """State of the optimizer, float32."""
    rng: jax.Array
    """Raw random key [2] uint32; a step's own key is this one folded with the step number."""

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
        """The state before the first update."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            rng=jax.random.key_data(jax.random.key(seed)),
        )
