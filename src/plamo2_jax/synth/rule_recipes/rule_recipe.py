"""The frame of recipes that need no model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest
from plamo2_jax.synth.recipe import SeedKind, Verification
from plamo2_jax.synth.record import Draft, Kind, Refusal, Seed

Make = Callable[[Seed, np.random.Generator], Sequence[Draft] | Refusal]


@dataclasses.dataclass(frozen=True)
class RuleRecipe:
    """A recipe that is a function of a seed and random numbers. It yields no requests."""

    name: str
    version: str
    language: str
    kind: Kind
    source: SeedKind
    description: str
    """One line for the table of recipes."""
    make: Make
    """Returns the drafts of a seed."""
    source_language: str | None = None
    fields: tuple[str, ...] = ()
    uses_model: bool = dataclasses.field(default=False, init=False)
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict, init=False)
    verify: tuple[Verification, ...] = ()

    @property
    def prompt_sha256(self) -> str:
        """Hash of the name and the version, because there are no prompts."""
        return hashlib.sha256(f"{self.name}/{self.version}".encode()).hexdigest()

    def requests(
        self, seed: Seed, sample: int, random: np.random.Generator
    ) -> Generator[ChatRequest | CompletionRequest, Sequence[ChatResponse], Sequence[Draft] | Refusal]:
        """Return drafts or a refusal without a request."""
        if self.source == "document" and not seed.text.strip():
            return Refusal("seed: no text")
        if self.source_language is not None and seed.language != self.source_language:
            return Refusal("seed: other language")
        missing = [name for name in self.fields if not seed.fields.get(name)]
        if missing:
            return Refusal(f"seed: no field {missing[0]}")
        return self.make(seed, random)
        yield  # Makes this function a generator.


def question_draft(kind: Kind, language: str, question: str, answer: str, fields: Mapping[str, Any]) -> Draft:
    """Return a question and its answer as a text or as messages."""
    if kind == "messages":
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Draft(messages=messages, fields=fields)
    labels = ("問題: ", "解答: ") if language == "ja" else ("Question: ", "Solution: ")
    return Draft(text=f"{labels[0]}{question}\n{labels[1]}{answer}", fields=fields)
