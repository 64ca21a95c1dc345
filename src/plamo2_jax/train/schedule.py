"""Learning-rate schedules: warm-up, then stable and decay, or cosine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule.

    The learning rate increases linearly and reaches its peak at the last warm-up update. `wsd` (warm-up, stable, decay: MiniCPM,
    arXiv:2404.06395) keeps it until the last `decay_fraction` of the run. `cosine` decreases from the end of warm-up to the end of the run.

    Raises:
        PlamoError: A field is out of range.
    """

    kind: Literal["wsd", "cosine"] = "wsd"
    """Shape of the schedule. wsd: warm-up, stable, decay. cosine: warm-up, then cosine decay to the end of the run."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    warmup: float = 0.01
    """Length of the warm-up: a fraction of all steps if below 1, otherwise a number of steps."""
    decay_fraction: float = 0.2
    """wsd: length of the final decay, as a fraction of all steps."""
    decay_shape: Literal["linear", "cosine", "one_minus_sqrt"] = "one_minus_sqrt"
    """wsd: shape of the decay. Hägele et al. (arXiv:2405.18392) found one_minus_sqrt best."""
    final_fraction: float = 0.0
    """Final learning rate, as a fraction of the peak."""

    def __post_init__(self) -> None:
        require(self, "kind", self.kind in ("wsd", "cosine"), "wsd or cosine")
        require(self, "learning_rate", self.learning_rate > 0, "positive")
        require(self, "warmup", self.warmup >= 0, "a fraction in [0, 1) or a number of steps")
        require(self, "decay_fraction", 0 <= self.decay_fraction <= 1, "in [0, 1]")
        shapes = ("linear", "cosine", "one_minus_sqrt")
        require(self, "decay_shape", self.decay_shape in shapes, f"one of {', '.join(shapes)}")
        require(self, "final_fraction", 0 <= self.final_fraction <= 1, "in [0, 1]")

    def warmup_steps(self, steps: int) -> int:
        """Return the number of warm-up updates in a run of `steps`."""
        return round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)


def make_schedule(config: ScheduleConfig, steps: int) -> Callable[[jax.Array | int], jax.Array]:
    """Return a traceable function from the update number (0 to steps - 1) to the learning rate.

    Raises:
        PlamoError: Warm-up and decay together are longer than the run.
    """
    warmup = config.warmup_steps(steps)
    decay = steps - warmup if config.kind == "cosine" else round(config.decay_fraction * steps)
    if warmup + decay > steps:
        raise PlamoError(
            f"ScheduleConfig.warmup={config.warmup!r} and decay_fraction={config.decay_fraction!r} are not allowed together: "
            f"warm-up ({warmup}) and decay ({decay}) must fit into {steps} steps"
        )
    shape = "cosine" if config.kind == "cosine" else config.decay_shape

    def learning_rate(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        progress = jnp.clip((step - (steps - decay)) / max(decay, 1), 0.0, 1.0)
        fall = config.final_fraction + (1 - config.final_fraction) * _remaining(shape, progress)
        return config.learning_rate * rise * fall

    return learning_rate


def _remaining(shape: str, progress: jax.Array) -> jax.Array:
    """Return the factor of the decay, from 1 at progress 0 to 0 at progress 1."""
    if shape == "linear":
        return 1 - progress
    if shape == "cosine":
        return 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return 1 - jnp.sqrt(progress)
