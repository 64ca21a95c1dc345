"""Settings of a merge and their validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from plamo2_jax.pattern import PatternError, first_matches, require_pattern
from plamo2_jax.surgery.merge.methods import Rescale
from plamo2_jax.surgery.merge.sources import MergeError

Method = Literal[
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "dare_linear",
    "della",
    "model_stock",
    "karcher",
    "breadcrumbs",
    "nearswap",
]
_WITHOUT_BASE = ("linear", "slerp", "karcher")
_DENSITY = {"ties": 0.2, "dare_ties": 0.5, "dare_linear": 0.5, "della": 0.5, "breadcrumbs": 0.9}


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """How to merge. The methods are told in `merge_methods`.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    method: Method
    """Which arithmetic."""
    weights: tuple[float, ...] = ()
    """One a model, in order; none: all 1. linear, slerp and karcher divide by their sum (slerp's t is the second's share)."""
    weights_for: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Pairs of a regular expression and other weights, for the tensors in whose description it is found (see `describe`); the last
    that is found counts."""
    density: float | None = None
    """Share of each difference that is kept; None: 0.2 for ties, 0.9 for breadcrumbs, 0.5 for dare and della."""
    scale: float = 1.0
    """lambda: what the merged differences are multiplied by."""
    normalize: bool | None = None
    """Whether differences are divided by the weights; None: for ties and della, as mergekit does."""
    rescale: Rescale = "probability"
    """dare, della: what makes up for dropped differences."""
    epsilon: float = 0.15
    """della: probabilities of keeping go from density - epsilon to density + epsilon."""
    gamma: float = 0.01
    """breadcrumbs: share of the largest differences that is left out."""
    t: float = 1e-3
    """nearswap: how far an element may move."""
    seed: int = 0
    """Of what is dropped at random."""

    def __post_init__(self) -> None:
        self._require("method", self.method in get_args(Method), f"one of {', '.join(get_args(Method))}")
        for weights in (self.weights, *(weights for _, weights in self.weights_for)):
            self._require("weights", all(map(math.isfinite, weights)), "finite numbers")
        for pattern, _ in self.weights_for:
            try:
                require_pattern(pattern)
            except PatternError as error:
                raise ValueError(f"--weights-for {error}") from error
        self._require("density", self.density is None or 0 < self.density <= 1, "in (0, 1], or none")
        self._require("rescale", self.rescale in get_args(Rescale), "probability, norm or none")
        self._require("scale", math.isfinite(self.scale), "a finite number")
        self._require("gamma", 0 <= self.gamma < 1, "in [0, 1)")
        self._require("t", self.t >= 0 and math.isfinite(self.t), "zero or positive")
        self._require("seed", self.seed >= 0, "0 or more")
        if self.method == "della":
            kept = self.kept
            fits = self.epsilon >= 0 and (kept == 1 or (kept - self.epsilon > 0 and kept + self.epsilon < 1))
            self._require("epsilon", fits, f"such that density={kept} ± epsilon lies in (0, 1)")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"MergeConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")

    @property
    def kept(self) -> float:
        """The density, default resolved."""
        return _DENSITY.get(self.method, 1.0) if self.density is None else self.density

    @property
    def normalizes(self) -> bool:
        """Whether differences are divided by the weights, default resolved."""
        return self.method in ("ties", "della") if self.normalize is None else self.normalize

    def weights_of(self, descriptions: Sequence[str], count: int) -> list[tuple[float, ...]]:
        """The weights of `count` models for the tensors with these descriptions.

        Raises:
            MergeError: a pattern of `weights_for` is found in no description, or takes too long.
        """
        try:
            for pattern, _ in self.weights_for:
                if set(first_matches([pattern], descriptions, "search")) == {None}:
                    example = descriptions[0]
                    raise MergeError(
                        f"--weights-for {pattern!r} is found in no tensor; they are described as {example!r}"
                    )
            # The last pattern that is found counts.
            patterns = [pattern for pattern, _ in reversed(self.weights_for)]
            found = first_matches(patterns, descriptions, "search")
        except PatternError as error:
            raise MergeError(f"--weights-for {error}") from error
        default = self.weights or (1.0,) * count
        return [default if number is None else self.weights_for[-1 - number][1] for number in found]

    def check(self, count: int, base: bool) -> None:
        """Raise MergeError unless the method takes `count` models besides the base, and with or without one."""
        method = self.method
        if base and method in _WITHOUT_BASE:
            raise MergeError(f"{method} has no base: leave --base out, or name that model among the others")
        if not base and method not in _WITHOUT_BASE:
            raise MergeError(f"{method} merges differences from a base model: name it with --base")
        least = {"slerp": 2, "linear": 2, "karcher": 2, "model_stock": 2}.get(method, 1)
        most = {"slerp": 2, "nearswap": 1}.get(method, math.inf)
        if not least <= count <= most:
            allowed = f"{least}" if least == most else f"at least {least}"
            raise MergeError(f"{method} takes {allowed} model(s){' besides the base' if base else ''}, not {count}")
        for weights in (self.weights, *(weights for _, weights in self.weights_for)):
            if weights and len(weights) != count:
                raise MergeError(f"{len(weights)} weight(s) are given for {count} model(s); each model needs one")
            if weights and method in _WITHOUT_BASE and not sum(weights) > 0:
                raise MergeError(f"the weights {weights} of {method} are not allowed: their sum must be positive")
