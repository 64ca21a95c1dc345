"""Configuration of a run that distils; `surgery.distill` makes its task."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Learning from a teacher (arXiv:1503.02531); see plamo2_jax.surgery.distill.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    teacher: Path
    """Run folder or folder of the public layout, of the student's vocabulary."""
    temperature: float = 1.0
    """Both distributions are softened by it."""
    alpha: float = 0.5
    """Share of the divergence in the loss; the rest is cross-entropy with the text."""
    top_k: int | None = None
    """Of the teacher's tokens the k likeliest count one by one, all others as one; none: all."""
    hidden_weight: float = 0.0
    """Coefficient of the distance between the two last residual streams."""
    logits: Path | None = None
    """Folder that `plamo2 distill` wrote: the teacher's logits from disk; none: the teacher runs beside the student."""

    def __post_init__(self) -> None:
        self._require("temperature", 0 < self.temperature < math.inf, "positive and finite")
        self._require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        self._require("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or none")
        self._require("hidden_weight", 0 <= self.hidden_weight < math.inf, "zero or positive")
        if self.logits is not None:
            self._require("hidden_weight", self.hidden_weight == 0, "0 with precomputed logits")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"DistillationConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")
