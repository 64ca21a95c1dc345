"""Extending a model's context: a wider attention window, full attention in chosen layers, another RoPE base.

The weights do not change. RoPE is relative, so attention to keys inside the old window stays the same. A larger RoPE base rotates more
slowly, so distant keys get angles that the model knows (Xiong et al., arXiv:2309.16039). A new base changes the outputs, and the model
needs further training. Full-attention layers use `rope_theta`; windowed layers use `rope_local_theta`, which defaults to `rope_theta`.

Full and windowed layers belong to different layer groups, so a change of `full_attention_idx` also regroups the parameter tree.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, Literal

from plamo2_jax import checkpoint
from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.names import ModelName
from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import require_empty
from plamo2_jax.surgery.structure import restack, unstack
from plamo2_jax.tokenizer.template_files import chat_template_files

Layers = Literal["all", "none"] | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage of a context extension."""

    sequence_length: int
    """Length of the training rows, in tokens."""
    window: int
    """`attention_window_size`, in tokens."""
    rope_theta: float
    """RoPE base."""


def extended_config(
    config: ModelConfig,
    *,
    window: int | None = None,
    rope_theta: float | None = None,
    rope_local_theta: float | None = None,
    full_attention: Layers | None = None,
) -> ModelConfig:
    """Return the config with the given attention settings; None keeps a setting.

    If some attention layers are full and some windowed, a new `rope_theta` does not change the base of the windowed layers.

    Args:
        window: Attention window in tokens.
        rope_theta: RoPE base of full-attention layers, or of all layers if all have a window.
        rope_local_theta: RoPE base of windowed layers.
        full_attention: "all", "none" or the numbers of the layers with full attention.

    Raises:
        PlamoError: The window shrinks, a layer has no attention, a base is out of range, or nothing changes.
    """
    changes: dict[str, Any] = {}
    if window is not None:
        if window < config.attention_window_size:
            raise PlamoError(
                f"--window {window} is not allowed: it must be at least the model's window, {config.attention_window_size}; a smaller "
                "window would hide keys that the model was trained with"
            )
        changes["attention_window_size"] = window
    attention = tuple(i for i, kind in enumerate(config.layer_kinds) if kind is not LayerKind.MAMBA)
    full = config.full_attention_idx
    if full_attention is not None:
        full = {"all": attention, "none": ()}.get(full_attention, full_attention)
        if lost := sorted(set(config.full_attention_idx) - set(full)):
            raise PlamoError(
                f"--full-attention must include layers {lost}: they already have full attention. Add them to the list"
            )
        changes["full_attention_idx"] = tuple(full)
    if set(full) >= set(attention):
        for option, value in (("--window", window), ("--rope-local-theta", rope_local_theta)):
            if value is not None:
                raise PlamoError(f"{option} {value} has no effect: every layer with attention has full attention")
    if rope_theta is not None:
        changes["rope_theta"] = float(rope_theta)
        if full and set(full) != set(attention):
            changes["rope_local_theta"] = config.local_theta
        elif config.local_theta != rope_theta:
            changes["rope_local_theta"] = None  # All layers use rope_theta.
    elif config.local_theta != config.rope_theta and set(full) - set(config.full_attention_idx):
        # A layer that becomes full changes its base, so the user must choose the base explicitly.
        raise PlamoError(
            f"layers {sorted(set(full) - set(config.full_attention_idx))} use "
            f"rope_local_theta={config.local_theta}, but with full attention they would use "
            f"rope_theta={config.rope_theta}. Choose the base with --rope-theta"
        )
    if rope_local_theta is not None:
        changes["rope_local_theta"] = float(rope_local_theta)
    extended = dataclasses.replace(config, **changes)
    if extended == config:
        raise PlamoError(
            "there is nothing to change: give --window, --rope-theta, --rope-local-theta or --full-attention"
        )
    return extended


def extend(model: str, output: str | os.PathLike[str], **changes: Any) -> ModelConfig:
    """Write a run folder with the model and its new attention settings.

    Args:
        model: Name of a model (`convert.names.ModelName`).
        output: Run folder to create; it must not exist or must be empty.
        changes: Arguments of `extended_config`.

    Returns:
        The new config.

    Raises:
        PlamoError: A change is not allowed, or the model is missing or damaged. No file is left behind.
    """
    require_empty(Path(output))
    files = chat_template_files(ModelName.parse(model).folder)
    loaded = load_model(model, require_finite=True)
    config = extended_config(loaded.config, **changes)
    params = restack(loaded.params, unstack(loaded.params, loaded.config), config)
    checkpoint.save_model(output, config, params, loaded.tokenizer, files=files)
    return config


def stages(first: Stage, last: Stage, count: int) -> list[Stage]:
    """Return `count` stages from `first` (excluded) to `last` (included), with lengths, windows and RoPE bases in geometric progression.

    Lengths and windows are rounded to multiples of the largest power of two that divides both ends, so rows still divide into chunks.

    Raises:
        PlamoError: `count` is below 1, or `last` is shorter than `first`.
    """
    if count < 1:
        raise PlamoError(f"count={count} is not allowed: it must be at least 1")
    if last.sequence_length < first.sequence_length or last.window < first.window:
        raise PlamoError(f"the last stage {last} is shorter than the first {first}: it must be at least as long")

    def between(low: float, high: float, step: int) -> float:
        return low * (high / low) ** (step / count)

    def whole(low: int, high: int, step: int) -> int:
        unit = math.gcd(low, high) & -math.gcd(low, high)
        return high if step == count else max(unit, round(between(low, high, step) / unit) * unit)

    return [
        Stage(
            whole(first.sequence_length, last.sequence_length, step),
            whole(first.window, last.window, step),
            last.rope_theta if step == count else round(between(first.rope_theta, last.rope_theta, step)),
        )
        for step in range(1, count + 1)
    ]
