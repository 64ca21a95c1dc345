"""TrainState: everything a train step changes, as one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plamo2_jax.sharding.rules import replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint must hold besides the position in the data, so that a resumed run equals one that never stopped."""

    step: jax.Array
    """Number of updates made so far, int32."""
    params: Any
    """Master parameters, float32."""
    opt_state: optax.OptState
    """State of the optimizer, of the dtypes that OptimizerConfig names."""
    rng: jax.Array
    """Raw random key [2] uint32; a step's own key is this one folded with the step number."""
    ema: Any = None
    """Moving average of the parameters, float32; None where none is kept."""

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, seed: int, keep_ema: bool = False
    ) -> TrainState:
        """Return the state before the first update; with `keep_ema` the average begins as a copy of the parameters."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            rng=jax.random.key_data(jax.random.key(seed)),
            # A copy: the step that is given both may reuse the memory of each.
            ema=jax.tree.map(jnp.copy, params) if keep_ema else None,
        )


def state_shardings(abstract: TrainState, optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    """Return the shardings of a state: the optimizer's trees like the parameters; step, counters and random key on every device.

    Args:
        abstract: the state's shapes.
        optimizer: the one whose state it is.
        params: tree of the parameters' NamedShardings, all of one mesh.
    """
    everywhere = replicated(jax.tree.leaves(params)[0].mesh)
    opt_state = optax.tree.map_params(
        optimizer, lambda _, sharding: sharding, abstract.opt_state, params, transform_non_params=lambda _: everywhere
    )
    ema = None if abstract.ema is None else params
    return TrainState(step=everywhere, params=params, opt_state=opt_state, rng=everywhere, ema=ema)
