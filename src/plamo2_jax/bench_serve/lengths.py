"""Distributions of lengths in tokens."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from plamo2_jax.errors import PlamoError

LARGEST = 1 << 20
"""Largest length that is drawn, in tokens."""
_FORMS = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """A distribution of whole numbers of at least 1."""

    kind: str
    """fixed, uniform or lognormal."""
    first: float
    """The number; or the smallest; or the median."""
    second: float = 0.0
    """The largest; or the standard deviation of the logarithm."""

    @classmethod
    def parse(cls, text: str, option: str) -> Lengths:
        """Read a distribution from the text of an option.

        Raises:
            PlamoError: it is none.
        """
        kind, *numbers = text.split(":") if ":" in text else ("fixed", text)
        plain = all(re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number) for number in numbers)
        if plain and (kind, len(numbers)) in (("fixed", 1), ("uniform", 2), ("lognormal", 2)):
            found = cls(kind, *map(float, numbers))
            whole = kind == "lognormal" or all(value == int(value) for value in (found.first, found.second))
            rising = kind != "uniform" or found.first <= found.second
            narrow = kind != "lognormal" or found.second <= 4
            if whole and rising and narrow and 1 <= found.first <= LARGEST and found.second <= LARGEST:
                return found
        raise PlamoError(f"{option} {text[:60]!r} is not allowed: it must be {_FORMS}, from 1 to {LARGEST:,} tokens")

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """Return `count` lengths."""
        if self.kind == "fixed":
            drawn = np.full(count, self.first)
        elif self.kind == "uniform":
            drawn = rng.integers(int(self.first), int(self.second) + 1, count)
        else:
            drawn = rng.lognormal(math.log(self.first), self.second, count)
        return np.clip(np.rint(drawn), 1, LARGEST).astype(int).tolist()
