"""AdamW with global-norm clipping and with weight decay of matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from plamo2_jax.model import axes
from plamo2_jax.train import int8_moments
from plamo2_jax.validation import require

StateDtype = Literal["float32", "bfloat16", "int8"]
"""dtypes of the moments of AdamW between updates."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101). The settings of PLaMo 2 are not public; the defaults are common in recent open models.

    Raises:
        PlamoError: A field is out of range.
    """

    beta1: float = 0.9
    """Decay of the first moment (mean of gradients), per step."""
    beta2: float = 0.95
    """Decay of the second moment (mean of squared gradients), per step."""
    epsilon: float = 1e-8
    """Term added to the square root of the second moment, for numerical stability."""
    weight_decay: float = 0.1
    """Decoupled weight decay, multiplied by the learning rate. It applies to matrices, not to vectors, norms and per-head scales."""
    decay_embedding: bool = False
    """Apply weight decay also to parameters with a vocabulary axis (embedding and head)."""
    clip_norm: float = 1.0
    """Gradient clipping: maximum global norm of the gradients."""
    mu_dtype: StateDtype = "float32"
    """dtype in which the first moment is stored. bfloat16 saves 2 bytes per parameter. int8, in blocks with one scale each, saves almost 3
    bytes per parameter of matrices; other parameters stay in float32."""
    nu_dtype: StateDtype = "float32"
    """dtype in which the second moment is stored, as for mu_dtype."""

    def __post_init__(self) -> None:
        require(self, "beta1", 0 <= self.beta1 < 1, "in [0, 1)")
        require(self, "beta2", 0 <= self.beta2 < 1, "in [0, 1)")
        require(self, "epsilon", self.epsilon > 0, "positive")
        require(self, "weight_decay", self.weight_decay >= 0, "zero or positive")
        require(self, "clip_norm", self.clip_norm > 0, "positive")
        for name, beta in (("mu_dtype", self.beta1), ("nu_dtype", self.beta2)):
            dtype = getattr(self, name)
            require(self, name, dtype in get_args(StateDtype), "float32, bfloat16 or int8")
            # Half a step of a bfloat16 is 1/512 to 1/256 of its value. A mean that changes by less per update would not change at all.
            allowed = f"float32 or int8 with a beta of {beta}: bfloat16 would round its updates away"
            require(self, name, dtype != "bfloat16" or 1 - beta >= 1 / 128, allowed)


def decay_mask(logical_axes: Any, *, decay_embedding: bool = False) -> Any:
    """Return which parameters have weight decay: a tree of bools, from a tree of axis names.

    Matrices have weight decay. Norms, biases, A_log, D, dt_bias (which the public PLaMo 2 code excludes by name), per-head scales and
    depthwise convolutions do not. Parameters with a vocabulary axis have it only with `decay_embedding`.
    """
    return axes.map_with_axes(
        lambda names: axes.is_matrix(names) and (decay_embedding or axes.VOCAB not in names), logical_axes
    )


def make_optimizer(
    config: OptimizerConfig, schedule: Callable[[jax.Array], jax.Array], logical_axes: Any
) -> optax.GradientTransformation:
    """Return clipping followed by AdamW. `schedule` maps the update number to the learning rate."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    mask = decay_mask(logical_axes, decay_embedding=config.decay_embedding)
    # The inner chain is part of the structure of the optimizer state in checkpoints.
    adamw = optax.chain(
        _with_stored_moments(adam, config, logical_axes),
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _with_stored_moments(
    adam: optax.GradientTransformation, config: OptimizerConfig, logical_axes: Any
) -> optax.GradientTransformation:
    """Store the moments in other dtypes between updates. optax has only bfloat16, and only for the first moment. `adam` has float32."""
    if config.mu_dtype == config.nu_dtype == "float32":
        return adam

    dtypes = {"mu": (config.mu_dtype, int8_moments.MEAN), "nu": (config.nu_dtype, int8_moments.MEAN_OF_SQUARES)}

    def store(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        def one(moments: Any, dtype: StateDtype, code: int8_moments.Code) -> Any:
            if dtype == "int8":
                return int8_moments.encode(code, moments, logical_axes, state.count)
            return jax.tree.map(lambda leaf: leaf.astype(dtype), moments)

        return state._replace(**{name: one(getattr(state, name), *how) for name, how in dtypes.items()})

    def load(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        def one(stored: Any, dtype: StateDtype, code: int8_moments.Code) -> Any:
            if dtype == "int8":
                return int8_moments.decode(code, stored, logical_axes)
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)

        return state._replace(**{name: one(getattr(state, name), *how) for name, how in dtypes.items()})

    def init(params: Any) -> optax.ScaleByAdamState:
        # Zeros instead of stored zeros, which XLA would compute for minutes while it compiles.
        return jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: store(adam.init(params)))
        )

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        updates, state = adam.update(grads, load(state), params)
        return updates, store(state)

    return optax.GradientTransformation(init, update)
