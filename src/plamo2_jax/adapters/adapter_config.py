"""Reading and validation of PEFT's adapter_config.json. Only plain LoRA is supported.

A field is read, or ignored because it does not change the merged weights, or refused unless it has the value of plain LoRA. The list has
the fields of LoraConfig in PEFT 0.21. Unknown fields must be null, false or empty.
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

_READ = """alpha_pattern base_model_name_or_path bias fan_in_fan_out init_lora_weights lora_alpha peft_type r rank_pattern
    target_modules use_rslora"""
# The first line describes who wrote the file. The second chooses the modules, which the tensors name too. The third has an effect in
# training only. The fourth has none unless another field is set, which is refused.
_HARMLESS = """auto_mapping inference_mode peft_version revision task_type
    exclude_modules layers_pattern layers_to_transform
    corda_config eva_config loftq_config lora_dropout lora_ga_config runtime_config velora_config
    ensure_weight_tying megatron_core qalora_group_size"""
_KNOWN = frozenset(f"{_READ} {_HARMLESS}".split())
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base unchanged. So do true and false."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of init_lora_weights that change the base before training."""


class AdapterError(PlamoError):
    """A folder holds no adapters of this model; the message names the file, field or tensor."""


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The fields of adapter_config.json that decide the merged weights, W + scale · B A."""

    path: Path
    rank: int
    alpha: float
    rank_stabilized: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str | None
    base: str | None

    def ranks_and_scales(self, modules: Sequence[str]) -> dict[str, tuple[int, float]]:
        """Return the rank and the scale of each module's adapter, by module.

        Raises:
            AdapterError: a pattern cannot be matched in time.
        """
        ranks = self._by_pattern("rank_pattern", self.rank_pattern, self.rank, modules)
        alphas = self._by_pattern("alpha_pattern", self.alpha_pattern, self.alpha, modules)
        return {
            module: (rank, alpha / (math.sqrt(rank) if self.rank_stabilized else rank))
            for module, rank, alpha in zip(modules, ranks, alphas, strict=True)
        }

    def targets(self, modules: Sequence[str]) -> list[bool]:
        """Return, for each module, whether PEFT gives it an adapter.

        Raises:
            AdapterError: target_modules is a pattern that cannot be matched in time.
        """
        if self.target_modules is None or self.target_modules == "all-linear":
            return [True] * len(modules)
        if isinstance(self.target_modules, str):
            return [found is not None for found in self._match("target_modules", [self.target_modules], modules)]
        names = set(self.target_modules)
        # A name matches a whole module path, or the end of one after a dot.
        parts = [module.split(".") for module in modules]
        return [any(".".join(path[i:]) in names for i in range(len(path))) for path in parts]

    def _by_pattern(self, field: str, patterns: Mapping[str, Any], default: Any, modules: Sequence[str]) -> list[Any]:
        values = list(patterns.values())
        # The rule of PEFT's `get_pattern_key`. A key must also be a valid pattern by itself.
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
        AdapterError: the file is not JSON, a field has an invalid value, or the adapters are not plain LoRA for an unchanged base.
    """
    fields = read_json_object(path, error=AdapterError, max_bytes=16 << 20)

    def require(name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise AdapterError(f"{path}: {name[:80]}={shown(fields.get(name))} is not supported: it must be {allowed}")

    require("peft_type", fields.get("peft_type") == "LORA", "'LORA'")
    for name, value in fields.items():
        if name not in _KNOWN:
            require(name, value is None or value is False or value in ([], {}, ""), "null or false, as for plain LoRA")
    require("bias", fields.get("bias", "none") in ("none", None), "'none'")
    require("fan_in_fan_out", fields.get("fan_in_fan_out") in (None, False), "false")
    require("use_rslora", fields.get("use_rslora") in (None, True, False), "true or false")
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights={shown(start)} is not supported: such adapters were trained on a base "
            "with modified weights. Convert them to plain LoRA with PEFT (save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )
    unchanged = start is None or isinstance(start, bool) or start in _PLAIN_STARTS
    require("init_lora_weights", unchanged, f"true, false, {', '.join(map(repr, _PLAIN_STARTS))}")
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
    config.ranks_and_scales([])  # Refuses invalid patterns, even if no module needs them.
    return config


def _is_rank(value: Any) -> bool:
    return is_integer(value) and 1 <= value <= LARGEST_RANK
