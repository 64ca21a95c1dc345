"""The interface of recipes.

A recipe asks nothing itself. `requests` is a generator: it yields requests, receives their responses, and returns drafts or a refusal. The
unit runner sends the requests of many seeds together, stores every response in a journal, and replays stored responses after a restart.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest
from plamo2_jax.synth.record import Draft, Kind, Refusal, Seed


class Recipe(Protocol):
    """A way to make records out of a seed. It is determined by its file and the random generator that it is given."""

    name: str
    version: str
    language: str
    """Language of the records."""
    kind: Kind
    prompt_sha256: str
    """Hash of everything in the recipe that affects its requests."""
    uses_model: bool
    """False for recipes that are programs, such as arithmetic problems. They yield no requests."""
    sampling: Mapping[str, Any]
    """Sampling settings of its requests, for the provenance."""

    def requests(
        self, seed: Seed, sample: int, random: np.random.Generator
    ) -> Generator[ChatRequest | CompletionRequest, Sequence[ChatResponse], Sequence[Draft] | Refusal]:
        """Yield the requests for a seed one after another; return drafts or a refusal.

        Args:
            seed: the input.
            sample: number of the sample of this seed.
            random: generator with a state that depends on the seed, the recipe and the sample only.
        """
        ...
