"""adapter_config.json of PEFT, read and validated: which adapters are plain LoRA, and by what they are multiplied.

Every field is read, does not change the sum of weights, or is refused unless it has the value of plain LoRA. The fields are those of
PEFT 0.21's LoraConfig; an unknown one is refused unless it is null, false or empty.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.adapters.config import LARGEST_RANK
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.pattern import PatternError, first_matches
from plamo2_jax.public_config import is_integer, is_number
from plamo2_jax.validation import shown

CONFIG = "adapter_config.json"

_READ = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)
_HARMLESS_BY_REASON = {
    "They say who wrote the file.": "auto_mapping inference_mode peft_version revision task_type",
    "They choose modules that have adapters; the tensors say so too.": "exclude_modules layers_pattern layers_to_transform",
    "They have an effect in training only; init_lora_weights says whether the base was changed.": """
        corda_config eva_config loftq_config lora_dropout lora_ga_config runtime_config velora_config""",
    "They have no effect unless another field is set, which is refused.": """
        ensure_weight_tying megatron_core qalora_group_size""",
}
_HARMLESS = frozenset(name for names in _HARMLESS_BY_REASON.values() for name in names.split())
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base's weights as they are; true and false do so too."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Those that train against a changed base."""


class AdapterError(PlamoError):
    """A folder holds no adapters, or not of this model; the message says which file, field or tensor."""


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says about the sum of weights: W + scale · B A."""

    path: Path
    rank: int
    alpha: float
    rank_stabilized: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str | None
    base: str | None

    def ranks_and_scales(self, modules: Sequence[str]) -> dict[str, tuple[int, float]]:
        """The rank of each module's adapter, and what it is multiplied by.

        Raises:
            AdapterError: a pattern cannot be matched in time.
        """
        ranks = self._of_modules("rank_pattern", self.rank_pattern, self.rank, modules)
        alphas = self._of_modules("alpha_pattern", self.alpha_pattern, self.alpha, modules)
        result = {}
        for module, rank, alpha in zip(modules, ranks, alphas, strict=True):
            result[module] = rank, alpha / (math.sqrt(rank) if self.rank_stabilized else rank)
        return result

    def targets(self, modules: Sequence[str]) -> list[bool]:
        """Whether PEFT gives each module an adapter.

        Raises:
            AdapterError: target_modules is a pattern that cannot be matched in time.
        """
        if self.target_modules is None or self.target_modules == "all-linear":
            return [True] * len(modules)
        if isinstance(self.target_modules, str):
            return [found is not None for found in self._match("target_modules", [self.target_modules], modules)]
        names = set(self.target_modules)
        return [any(name in names for name in _endings(module)) for module in modules]

    def _of_modules(self, field: str, patterns: Mapping[str, Any], default: Any, modules: Sequence[str]) -> list[Any]:
        values = list(patterns.values())
        # PEFT's own rule: `get_pattern_key`. A key must be a pattern by itself, not only inside of this frame.
        self._match(field, list(patterns), [])
        found = self._match(field, [rf"(?:.*\.)?(?:{pattern})" for pattern in patterns], modules)
        return [default if number is None else values[number] for number in found]

    def _match(self, field: str, patterns: list[str], modules: Sequence[str]) -> list[int | None]:
        try:
            return first_matches(patterns, modules, "fullmatch")
        except PatternError as error:
            raise AdapterError(f"{self.path}: {field}: {error}") from error


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read adapter_config.json.

    Raises:
        AdapterError: it is not JSON, a field has a value that is not allowed, or the adapters are not plain LoRA for the plain base.
    """
    fields = read_json_object(path, error=AdapterError, max_bytes=16 << 20)

    def require(name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise AdapterError(f"{path}: {name[:80]}={shown(fields.get(name))} is not supported: it must be {allowed}")

    require("peft_type", fields.get("peft_type") == "LORA", "'LORA'")
    for name, value in fields.items():
        if name not in _READ and name not in _HARMLESS:
            require(name, value is None or value is False or value in ([], {}, ""), "null or false, as for plain LoRA")
    require("bias", fields.get("bias", "none") in ("none", None), "'none'")
    require("fan_in_fan_out", fields.get("fan_in_fan_out") in (None, False), "false")
    require("use_rslora", fields.get("use_rslora") in (None, True, False), "true or false")
    _check_start(path, fields.get("init_lora_weights"))
    rank, alpha = fields.get("r", 8), fields.get("lora_alpha", 8)
    require("r", _is_rank(rank), f"an integer from 1 to {LARGEST_RANK:,}")
    require("lora_alpha", is_number(alpha), "a finite number")
    for name, allowed, fits in (
        ("rank_pattern", f"an integer from 1 to {LARGEST_RANK:,}", _is_rank),
        ("alpha_pattern", "a finite number", is_number),
    ):
        patterns = fields.get(name)
        require(name, patterns is None or isinstance(patterns, dict), "an object or null")
        for pattern, value in (patterns or {}).items():
            if not fits(value):
                raise AdapterError(
                    f"{path}: {name}[{shown(pattern)}]={shown(value)} is not allowed: it must be {allowed}"
                )
    targets = fields.get("target_modules")
    listed = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    require("target_modules", targets is None or isinstance(targets, str) or listed, "a list of names or a pattern")
    base = fields.get("base_model_name_or_path")
    require("base_model_name_or_path", base is None or isinstance(base, str), "a name or null")
    config = AdapterConfig(
        path,
        rank,
        float(alpha),
        bool(fields.get("use_rslora")),
        fields.get("rank_pattern") or {},
        fields.get("alpha_pattern") or {},
        tuple(targets) if listed else targets,
        base,
    )
    config.ranks_and_scales([])  # Every pattern must be one, even where no module is left for it.
    return config


def _check_start(path: Path, start: Any) -> None:
    """Refuse adapters that were trained against a base whose weights were changed first."""
    if start is None or isinstance(start, bool) or start in _PLAIN_STARTS:
        return
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights={shown(start)} is not supported: such adapters belong to a base whose weights were changed "
            "before training. Convert them to plain LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    allowed = ", ".join(map(repr, _PLAIN_STARTS))
    raise AdapterError(f"{path}: init_lora_weights={shown(start)} is not supported: it must be true, false, {allowed}")


def _is_rank(value: Any) -> bool:
    return is_integer(value) and 1 <= value <= LARGEST_RANK


def _endings(module: str) -> list[str]:
    """A dotted name and what is left of it when names are taken from its front."""
    parts = module.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]
