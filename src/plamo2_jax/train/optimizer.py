"""AdamW with global-norm clipping, and weight decay chosen by the axes a parameter names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from plamo2_jax.model import axes

# Axes along which a weight does not map one feature to another: the stack of layers, the taps of a depthwise filter,
# and the channels inside a head, which belong to the head's axis.
_NOT_FEATURES = frozenset({axes.LAYERS, axes.CONV, axes.HEAD_DIM})


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

    def __post_init__(self) -> None:
        self._require("beta1", 0 <= self.beta1 < 1, "in [0, 1)")
        self._require("beta2", 0 <= self.beta2 < 1, "in [0, 1)")
        self._require("epsilon", self.epsilon > 0, "positive")
        self._require("weight_decay", self.weight_decay >= 0, "zero or positive")
        self._require("clip_norm", self.clip_norm > 0, "positive")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"OptimizerConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")


def decays(names: axes.Axes, *, decay_embedding: bool = False) -> bool:
    """Whether a parameter with these logical axes has weight decay.

    It has when it is a matrix: when at least two of its axes are features, the one mapped to the other. That leaves out norms,
    biases, A_log, D, dt_bias (which PLaMo 2's module excludes by name), per-head scales and depthwise convolutions.
    """
    if axes.VOCAB in names and not decay_embedding:
        return False
    return len({name for name in names if name is not None} - _NOT_FEATURES) >= 2


def decay_mask(logical_axes: Any, *, decay_embedding: bool = False) -> Any:
    """A tree of bools like `logical_axes`, whose leaves are tuples of axis names."""
    return axes.map_with_axes(lambda names: decays(names, decay_embedding=decay_embedding), logical_axes)


def make_optimizer(
    config: OptimizerConfig, schedule: Callable[[jax.Array], jax.Array], logical_axes: Any
) -> optax.GradientTransformation:
    """Clipping, then AdamW; its state is float32 and shaped like the parameters."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask(logical_axes, decay_embedding=config.decay_embedding),
        ),
    )
