"""The interface of recipes.

A recipe sends no requests itself. `requests` is a generator: it yields requests, receives their responses, and returns drafts or a refusal.
The unit runner sends the requests of many seeds together, stores every response in a journal, and replays stored responses after a restart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest
from plamo2_jax.synth.record import Draft, Kind, Refusal, Seed

SeedKind = Literal["document", "fields", "none"]
"""document: the seed has a text. fields: the seed has the fields that the recipe names. none: a numbered seed with an id only."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """A verification step that a recipe asks for."""

    name: str
    """Name of the step in `synth.verify`."""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Parameters of the step, as JSON."""


class Recipe(Protocol):
    """A way to make records out of a seed. It is determined by its file and the random generator that it is given."""

    name: str
    version: str
    language: str
    """Language of the records."""
    kind: Kind
    source: SeedKind
    """Kind of seed that the recipe needs."""
    source_language: str | None
    """Language that a document must be in; None: any language."""
    fields: Sequence[str]
    """Names of fields that every seed must have."""
    prompt_sha256: str
    """Hash of everything in the recipe that affects its requests."""
    uses_model: bool
    """False for recipes that are programs, such as arithmetic problems. They yield no requests."""
    sampling: Mapping[str, Any]
    """Sampling settings of its requests, for the provenance."""
    verify: Sequence[Verification]
    """Verification steps for the drafts, in order."""

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
