"""The configuration of preference data, and which part of it identifies the data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from plamo2_jax.align.preference_data.judge import JudgeConfig
from plamo2_jax.align.preference_data.pairing import PairingConfig
from plamo2_jax.align.preference_data.rules import RuleError, check_rules
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.train.config import fill_defaults, to_json
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class PreferenceDataConfig:
    """One set of preference data.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    output: Path
    """Folder to write."""
    prompts: tuple[Path, ...]
    """Prompts or conversations as JSON lines, Parquet or ArrayRecord: files, folders or patterns (see `prompts`)."""
    policy: ChatModelConfig
    """Who answers."""
    samples: int = 4
    """Answers to each prompt."""
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(0.8, top_p=0.95))
    """How their tokens are chosen."""
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """What ends an answer besides the end that the chat template gives it; `ids` are further ones."""
    rules: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of every prompt, under those of its own line; see plamo2_jax.align.preference_data.rules."""
    rules_weight: float = 1.0
    """Of the rules' mean in an answer's score, beside the judge's weight."""
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    """Who compares answers, if anybody."""
    pairing: PairingConfig = dataclasses.field(default_factory=PairingConfig)
    """Which answers stand against each other."""
    near_prompts: float | None = 0.95
    """Jaccard similarity of character 5-grams from which a prompt repeats an earlier one, and is left out; none: none does."""
    heldout_share: float = 0.05
    """Share of the prompts whose pairs are held out; which ones is decided by their ids alone."""
    seed: int = 0
    """Of all answers: same seed, same answers."""
    allow_unisolated_code: bool = False
    """Run the programs of the rule `code` even if this system cannot isolate them. They can then read your files and use the network."""

    def __post_init__(self) -> None:
        require(self, "prompts", len(self.prompts) > 0, "one or several files")
        require(self, "policy", bool(self.policy.model), "one with a model")
        require(self, "samples", self.samples >= 2, "at least 2: a pair is made of two answers")
        require(self, "rules_weight", 0 <= self.rules_weight < math.inf, "zero or positive, and finite")
        weighed = self.rules_weight > 0 or bool(self.judge.model)
        require(self, "rules_weight", weighed, "positive where there is no judge")
        near = self.near_prompts
        require(self, "near_prompts", near is None or 0 < near <= 1, "above 0 and at most 1, or none")
        require(self, "heldout_share", 0 <= self.heldout_share < 1, "in [0, 1)")
        require(self, "seed", 0 <= self.seed < 1 << 32, f"from 0 to {(1 << 32) - 1}")
        try:
            check_rules(self.rules)
        except RuleError as error:
            raise PlamoError(f"PreferenceDataConfig.rules: {error}") from None


# Where things lie and how they are reached changes no answer.
_FREE = {
    "": ("output", "allow_unisolated_code"),
    "policy": ("url", "api_key_env", "concurrency", "timeout", "max_retries", "backoff"),
}
_FREE["judge"] = _FREE["policy"]


def identity(config: PreferenceDataConfig) -> dict[str, Any]:
    """A configuration as JSON, without what may change between two starts."""
    return _without_free(to_json(config))


def stored_identity(stored: dict[str, Any], config: PreferenceDataConfig) -> dict[str, Any]:
    """A stored `identity` in today's form: today's names, and the defaults of fields that did not exist when it was written.

    Args:
        stored: in JSON form.
        config: what it is compared with.
    """
    models = {name: stored[name] for name in ("policy", "judge") if isinstance(stored.get(name), dict)}
    # Before version 1.1, `batch_size` of a model was `rows`.
    renamed = {
        name: {{"rows": "batch_size"}.get(field, field): value for field, value in model.items()}
        for name, model in models.items()
    }
    return _without_free(fill_defaults({**stored, **renamed}, config))


def _without_free(found: dict[str, Any]) -> dict[str, Any]:
    for part, names in _FREE.items():
        fields = found.get(part) if part else found
        for name in names if isinstance(fields, dict) else ():
            fields.pop(name, None)
    return found
