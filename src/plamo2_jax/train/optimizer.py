"""AdamW with global-norm clipping and with weight decay of matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from plamo2_jax.model import axes
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101). The settings of PLaMo 2 are not public; the defaults are common in recent open models.

    Raises:
        PlamoError: A field is out of range.
    """

    beta1: float = 0.9
    """Decay of the mean of gradients, per update."""
    beta2: float = 0.95
    """Decay of the mean of squared gradients, per update."""
    epsilon: float = 1e-8
    """Term added to the square root of the mean of squared gradients."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices, multiplied by the learning rate. Vectors, norms and per-head scales do not decay."""
    decay_embedding: bool = False
    """Whether parameters with a vocabulary axis decay too."""
    clip_norm: float = 1.0
    """Maximum global norm of the gradients."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the mean of gradients between updates; bfloat16 saves 2 bytes per parameter."""
    nu_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the mean of squared gradients between updates; bfloat16 saves 2 bytes per parameter."""

    def __post_init__(self) -> None:
        require(self, "beta1", 0 <= self.beta1 < 1, "in [0, 1)")
        require(self, "beta2", 0 <= self.beta2 < 1, "in [0, 1)")
        require(self, "epsilon", self.epsilon > 0, "positive")
        require(self, "weight_decay", self.weight_decay >= 0, "zero or positive")
        require(self, "clip_norm", self.clip_norm > 0, "positive")
        for name, beta in (("mu_dtype", self.beta1), ("nu_dtype", self.beta2)):
            dtype = getattr(self, name)
            require(self, name, dtype in ("float32", "bfloat16"), "float32 or bfloat16")
            # Half a step of a bfloat16 is 1/512 to 1/256 of its value. A mean that changes by less per update would not change at all.
            allowed = f"float32 with a beta of {beta}: bfloat16 would round its updates away"
            require(self, name, dtype == "float32" or 1 - beta >= 1 / 128, allowed)


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
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=config.mu_dtype)
    mask = decay_mask(logical_axes, decay_embedding=config.decay_embedding)
    # The inner chain is part of the structure of the optimizer state in checkpoints.
    adamw = optax.chain(
        _with_nu_dtype(adam, config.nu_dtype),
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _with_nu_dtype(adam: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Store the second moments in another dtype between updates (optax can do this only for the first). `adam` computes in float32."""
    if dtype == "float32":
        return adam

    def cast(state: optax.ScaleByAdamState, dtype: str) -> optax.ScaleByAdamState:
        return state._replace(nu=jax.tree.map(lambda leaf: leaf.astype(dtype), state.nu))

    def init(params: Any) -> optax.ScaleByAdamState:
        return cast(adam.init(params), dtype)

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        updates, state = adam.update(grads, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)
