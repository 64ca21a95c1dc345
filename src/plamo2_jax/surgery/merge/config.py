"""Settings of a merge and their validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from plamo2_jax.errors import PlamoError
from plamo2_jax.pattern import PatternError, first_matches, require_pattern
from plamo2_jax.surgery.merge.methods import Rescale
from plamo2_jax.surgery.merge.sources import MergeError
from plamo2_jax.validation import changed_fields, require

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
_DIFFERENCES = ("task_arithmetic", "ties", "dare_ties", "dare_linear", "della", "breadcrumbs")
_WEIGHTED = (*_WITHOUT_BASE, *_DIFFERENCES)
_RANDOM = ("dare_ties", "dare_linear", "della")
_DENSITY = {"ties": 0.2, "dare_ties": 0.5, "dare_linear": 0.5, "della": 0.5, "breadcrumbs": 0.9}

_READ_BY = {
    "weights": ("--weight", _WEIGHTED),
    "weights_for": ("--weights-for", _WEIGHTED),
    "density": ("--density", tuple(_DENSITY)),
    "scale": ("--lambda", _DIFFERENCES),
    "normalize": ("--normalize", _DIFFERENCES),
    "rescale": ("--rescale", _RANDOM),
    "epsilon": ("--epsilon", ("della",)),
    "gamma": ("--gamma", ("breadcrumbs",)),
    "t": ("--t", ("nearswap",)),
    "seed": ("--seed", _RANDOM),
}
"""Field → its option, and the methods that use it."""


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """Settings of a merge. The module `methods` describes each method.

    Raises:
        PlamoError: A field is out of range. The message names the field, its value and what is allowed.
    """

    method: Method
    """Merge method."""
    weights: tuple[float, ...] = ()
    """One weight per model, in order; empty: all 1. linear, slerp and karcher divide by the sum (slerp's t is the second's share)."""
    weights_for: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Pairs (regular expression, weights): other weights for tensors whose description (`merge.describe`) matches. The last match wins."""
    density: float | None = None
    """Share of each difference that is kept; None: 0.2 for ties, 0.9 for breadcrumbs, 0.5 for dare and della."""
    scale: float = 1.0
    """Factor of the merged differences, lambda in the papers."""
    normalize: bool | None = None
    """Whether the sum of differences is divided by the weights; None: yes for ties and della, as in mergekit."""
    rescale: Rescale = "probability"
    """dare, della: how kept differences are rescaled to compensate for dropped ones."""
    epsilon: float = 0.15
    """della: keep probabilities range from density - epsilon to density + epsilon."""
    gamma: float = 0.01
    """breadcrumbs: share of the largest differences that is dropped."""
    t: float = 1e-3
    """nearswap: largest change of an element."""
    seed: int = 0
    """Random seed of dare and della."""

    def __post_init__(self) -> None:
        require(self, "method", self.method in get_args(Method), f"one of {', '.join(get_args(Method))}")
        for weights in (self.weights, *(weights for _, weights in self.weights_for)):
            require(self, "weights", all(map(math.isfinite, weights)), "finite numbers")
        for pattern, _ in self.weights_for:
            try:
                require_pattern(pattern)
            except PatternError as error:
                raise PlamoError(f"--weights-for {error}") from error
        require(self, "density", self.density is None or 0 < self.density <= 1, "in (0, 1], or none")
        require(self, "rescale", self.rescale in get_args(Rescale), "probability, norm or none")
        require(self, "scale", math.isfinite(self.scale), "a finite number")
        require(self, "gamma", 0 <= self.gamma < 1, "in [0, 1)")
        require(self, "t", self.t >= 0 and math.isfinite(self.t), "zero or positive")
        require(self, "seed", self.seed >= 0, "0 or more")
        if self.method == "della":
            kept = self.kept
            fits = self.epsilon >= 0 and (kept == 1 or (kept - self.epsilon > 0 and kept + self.epsilon < 1))
            require(self, "epsilon", fits, f"such that density={kept} ± epsilon lies in (0, 1)")

    @property
    def kept(self) -> float:
        """The density, with its default resolved."""
        return _DENSITY.get(self.method, 1.0) if self.density is None else self.density

    @property
    def normalizes(self) -> bool:
        """Whether the sum of differences is divided by the weights, with its default resolved."""
        return self.method in ("ties", "della") if self.normalize is None else self.normalize

    def weights_of(self, descriptions: Sequence[str], count: int) -> list[tuple[float, ...]]:
        """Return the weights of `count` models for each tensor, given the tensor descriptions.

        Raises:
            MergeError: A pattern of `weights_for` matches no description, or takes too long.
        """
        try:
            for pattern, _ in self.weights_for:
                if set(first_matches([pattern], descriptions, "search")) == {None}:
                    example = descriptions[0]
                    raise MergeError(
                        f"--weights-for {pattern!r} matches no tensor: it must match descriptions such as {example!r}"
                    )
            # The last pattern that matches wins.
            patterns = [pattern for pattern, _ in reversed(self.weights_for)]
            found = first_matches(patterns, descriptions, "search")
        except PatternError as error:
            raise MergeError(f"--weights-for {error}") from error
        default = self.weights or (1.0,) * count
        return [default if number is None else self.weights_for[-1 - number][1] for number in found]

    def check(self, count: int, base: bool) -> None:
        """Check the number of models besides the base, whether the method needs a base, and that it uses every field that is set.

        Raises:
            MergeError: The method does not accept them.
        """
        method = self.method
        if base and method in _WITHOUT_BASE:
            raise MergeError(f"{method} does not use a base model. Remove --base, or list that model among the others")
        if not base and method not in _WITHOUT_BASE:
            raise MergeError(f"{method} merges differences from a base model: give --base MODEL")
        for name in sorted(changed_fields(self) & _READ_BY.keys()):
            option, methods = _READ_BY[name]
            if method not in methods:
                raise MergeError(
                    f"{option} is not allowed with {method}, which does not use it: only {', '.join(methods)} do"
                )
        least = {"slerp": 2, "linear": 2, "karcher": 2, "model_stock": 2}.get(method, 1)
        most = {"slerp": 2, "nearswap": 1}.get(method, math.inf)
        if not least <= count <= most:
            allowed = f"{least}" if least == most else f"at least {least}"
            raise MergeError(f"{method} needs {allowed} model(s){' besides the base' if base else ''}, not {count}")
        for weights in (self.weights, *(weights for _, weights in self.weights_for)):
            if weights and len(weights) != count:
                raise MergeError(f"{len(weights)} weight(s) for {count} model(s): each model needs one weight")
            if method == "karcher" and any(weight < 0 for weight in weights or ()):
                raise MergeError(f"the weights {weights} of karcher are not allowed: they must be 0 or more")
            if weights and method in _WITHOUT_BASE and not sum(weights) > 0:
                raise MergeError(f"the weights {weights} of {method} are not allowed: their sum must be positive")
