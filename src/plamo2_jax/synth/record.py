"""Records of synthetic data and their provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Kind = Literal["text", "messages"]


@dataclasses.dataclass(frozen=True)
class Source:
    """A text that a record was made from."""

    id: str
    sha256: str
    """SHA-256 of the text in UTF-8, in hexadecimal."""
    license: str
    """SPDX expression or name of the licence; "unknown" if the source does not declare one."""
    url: str | None = None


@dataclasses.dataclass(frozen=True)
class Seed:
    """The input of a recipe: a document, a segment of one, or fields such as a topic."""

    id: str
    """Unique among the seeds of a run."""
    language: str
    text: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other values for the prompt templates, as JSON."""
    sources: tuple[Source, ...] = ()
    generation: int = 0
    """0 for text that people wrote; otherwise the generation of the record that the seed came from."""


@dataclasses.dataclass(frozen=True)
class RecipeStamp:
    """The recipe of a record."""

    name: str
    version: str
    prompt_sha256: str
    """Hash of the templates and settings of the recipe."""


@dataclasses.dataclass(frozen=True)
class GeneratorStamp:
    """The model that wrote a record, or the rule that made it."""

    name: str
    fingerprint: str
    license: str
    """Licence of the model's outputs; "unknown" if none is declared."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a record cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    """Price in the currency of the config."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """What a recipe returns for one record, before verification."""

    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Scores that the recipe computed itself, such as the agreement over samples or a judge's score."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values for verification, such as the expected answer, tests or constraints, as JSON. They are written with the record."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a recipe returns no record."""

    reason: str
    """A short name for counting, such as "parse: no prefix"."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A record as it is written. Exactly one of `text` and `messages` is given."""

    id: str
    """BLAKE2b of the seed, the recipe, the generator, the sampling settings, the random seed and the sample number."""
    language: str
    kind: Kind
    sources: tuple[Source, ...]
    recipe: RecipeStamp
    generator: GeneratorStamp
    sampling: Mapping[str, Any]
    seed: int
    sample: int
    usage: Usage
    license: str
    """The strictest of the licences of the sources and of the generator."""
    generation: int
    """1 + the largest generation of its sources."""
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    verdicts: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    """Result of each verification step by name."""
    parents: tuple[str, ...] = ()
    """Ids of synthetic records that this record was made from."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object, without the unused one of `text` and `messages`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
