"""TrainState: everything that a train step changes, as a pytree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from plamo2_jax.sharding.rules import replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The part of a checkpoint that the train step changes. With the data position, it resumes a run exactly."""

    step: jax.Array
    """Number of updates so far, int32."""
    params: Any
    """Master parameters, float32."""
    opt_state: optax.OptState
    """State of the optimizer, with the dtypes of OptimizerConfig."""
    rng: jax.Array
    """Raw random key [2] uint32. Each step folds its number into it."""
    ema: Any = None
    """Moving average of the parameters, float32; None without ema_decay."""

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, seed: int, keep_ema: bool = False
    ) -> TrainState:
        """Return the state before the first update. With `keep_ema`, the average starts as a copy of the parameters."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            rng=jax.random.key_data(jax.random.key(seed)),
            # A copy, because the train step donates both.
            ema=jax.tree.map(jnp.copy, params) if keep_ema else None,
        )


def state_shardings(abstract: TrainState, optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    """Return the shardings of a state. Optimizer trees are sharded like the parameters; step, counters and random key are replicated.

    Args:
        abstract: Shapes of the state.
        optimizer: Optimizer of the state.
        params: Tree of the NamedShardings of the parameters.
    """
    everywhere = replicated(jax.tree.leaves(params)[0].mesh)
    opt_state = optax.tree.map_params(
        optimizer, _fitted, abstract.opt_state, params, transform_non_params=lambda _: everywhere
    )
    ema = None if abstract.ema is None else params
    return TrainState(step=everywhere, params=params, opt_state=opt_state, rng=everywhere, ema=ema)


def _fitted(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of an array of the optimizer, given that of its parameter.

    Scales of blocks have the axes of the parameter, and one of them is shorter. An axis that cannot be divided then is replicated.
    """
    mesh, spec = sharding.mesh, sharding.spec
    if leaf.ndim < len(spec):
        return replicated(mesh)
    parts = [
        math.prod(mesh.shape[name] for name in ((over,) if isinstance(over, str) else over or ())) for over in spec
    ]
    fitting = (over if leaf.shape[i] % parts[i] == 0 else None for i, over in enumerate(spec))
    return NamedSharding(mesh, PartitionSpec(*fitting))
