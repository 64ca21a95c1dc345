"""Configuration of preference data, and the part of it that identifies the data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from plamo2_jax.align.preference_data.judge import JudgeConfig
from plamo2_jax.align.preference_data.pairing import PairingConfig
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.answer_rules import RuleError, check_rules
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.train.config import fill_defaults, to_json
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class PreferenceDataConfig:
    """Settings of one set of preference data. A field that is out of range raises PlamoError."""

    output: Path
    """Output folder."""
    prompts: tuple[Path, ...]
    """Prompts or conversations as JSON lines, Parquet or ArrayRecord: files, folders or patterns."""
    policy: ChatModelConfig
    """Model that answers the prompts."""
    samples: int = 4
    """Number of answers to each prompt."""
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(0.8, top_p=0.95))
    """Sampling of the answers."""
    stop: StopConfig = dataclasses.field(default_factory=StopConfig)
    """Additional stop conditions. An answer always ends at the end token of the chat template."""
    rules: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Rules for the answers to all prompts; the rules of a prompt replace them. See plamo2_jax.eval.answer_rules."""
    rules_weight: float = 1.0
    """Weight of the mean rule score in the score of an answer, relative to `judge.weight`."""
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    """Judge model that compares answers. Without `judge.model`, no judge is used."""
    pairing: PairingConfig = dataclasses.field(default_factory=PairingConfig)
    """Selection of pairs from the answers."""
    near_prompts: float | None = 0.95
    """Omit a prompt if its Jaccard similarity of character 5-grams to an earlier prompt is at least this; none: keep all."""
    heldout_share: float = 0.05
    """Share of the prompts whose pairs are held out. The split depends only on the ids of the prompts."""
    seed: int = 0
    """Random seed of the answers."""
    allow_unisolated_code: bool = False
    """Run the programs of the rule `code` even if this system cannot isolate them. They can then read your files and use the network."""

    def __post_init__(self) -> None:
        require(self, "prompts", len(self.prompts) > 0, "one or several files")
        require(self, "policy", bool(self.policy.model), "one with a model")
        require(self, "samples", self.samples >= 2, "at least 2, because a pair has two answers")
        require(self, "rules_weight", 0 <= self.rules_weight < math.inf, "zero or positive, and finite")
        weighed = self.rules_weight > 0 or bool(self.judge.model)
        require(self, "rules_weight", weighed, "positive without a judge")
        near = self.near_prompts
        require(self, "near_prompts", near is None or 0 < near <= 1, "above 0 and at most 1, or none")
        require(self, "heldout_share", 0 <= self.heldout_share < 1, "in [0, 1)")
        require(self, "seed", 0 <= self.seed < 1 << 32, f"from 0 to {(1 << 32) - 1}")
        try:
            check_rules(self.rules)
        except RuleError as error:
            raise PlamoError(f"PreferenceDataConfig.rules: {error}") from None


# These fields do not change the answers.
_FREE = {
    "": ("output", "allow_unisolated_code"),
    "policy": ("url", "api_key_env", "concurrency", "timeout", "max_retries", "backoff"),
}
_FREE["judge"] = _FREE["policy"]


def identity(config: PreferenceDataConfig) -> dict[str, Any]:
    """Return a configuration as JSON, without the fields that may change when the command is run again."""
    return _without_free(to_json(config))


def stored_identity(stored: dict[str, Any], config: PreferenceDataConfig) -> dict[str, Any]:
    """Return a stored `identity` with current names, and with the defaults of fields that are newer than it."""
    # Before version 1.1, the field `batch_size` of a model was called `rows`.
    renamed = {
        name: {{"rows": "batch_size"}.get(field, field): value for field, value in stored[name].items()}
        for name in ("policy", "judge")
        if isinstance(stored.get(name), dict)
    }
    return _without_free(fill_defaults({**stored, **renamed}, config))


def _without_free(found: dict[str, Any]) -> dict[str, Any]:
    for part, names in _FREE.items():
        fields = found.get(part) if part else found
        for name in names if isinstance(fields, dict) else ():
            fields.pop(name, None)
    return found
