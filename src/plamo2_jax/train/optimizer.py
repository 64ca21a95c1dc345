"""AdamW with global-norm clipping, and weight decay chosen by the axes a parameter names."""

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
    """AdamW (arXiv:1711.05101). PLaMo 2's own settings are not public; the defaults are those common to recent open models.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the mean of squared gradients."""
    weight_decay: float = 0.1
    """Decoupled weight decay, times the learning rate, of matrices; vectors, norms and per-head scales have none."""
    decay_embedding: bool = False
    """Whether parameters with a vocabulary axis decay too."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
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
        for name in ("mu_dtype", "nu_dtype"):
            require(self, name, getattr(self, name) in ("float32", "bfloat16"), "float32 or bfloat16")
        for name, beta in (("mu_dtype", self.beta1), ("nu_dtype", self.beta2)):
            # Half a step of a bfloat16 is 1/512 to 1/256 of it: a mean that moves by less in an update stands still.
            kept = getattr(self, name) == "float32" or 1 - beta >= 1 / 128
            require(self, name, kept, f"float32 with a beta of {beta}: bfloat16 would round its updates away")


def decays(names: axes.Axes, *, decay_embedding: bool = False) -> bool:
    """Return whether a parameter with these logical axes has weight decay.

    It has when it is a matrix: when at least two of its axes are features, the one mapped to the other. That leaves out norms,
    biases, A_log, D, dt_bias (which PLaMo 2's module excludes by name), per-head scales and depthwise convolutions.
    """
    if axes.VOCAB in names and not decay_embedding:
        return False
    return axes.is_matrix(names)


def decay_mask(logical_axes: Any, *, decay_embedding: bool = False) -> Any:
    """Return a tree of bools like `logical_axes`, whose leaves are tuples of axis names."""
    return axes.map_with_axes(lambda names: decays(names, decay_embedding=decay_embedding), logical_axes)


def make_optimizer(
    config: OptimizerConfig, schedule: Callable[[jax.Array], jax.Array], logical_axes: Any
) -> optax.GradientTransformation:
    """Return clipping followed by AdamW. Its state is shaped like the parameters, with the dtypes that `config` names."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=config.mu_dtype)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.chain(
            _keep_nu_as(adam, config.nu_dtype),
            optax.add_decayed_weights(
                config.weight_decay, decay_mask(logical_axes, decay_embedding=config.decay_embedding)
            ),
            optax.scale_by_learning_rate(schedule),
        ),
    )


def _keep_nu_as(adam: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Return `adam`, which computes in float32, with its second moments in another dtype between updates (optax has this for the first)."""
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
