"""Opening a model's attention: a wider window, full attention in chosen layers, another RoPE base, and in which steps to get there.

No weight changes. A wider window gives a layer more keys, full attention all of them; since RoPE is relative, what a token sees
inside the old window is what it saw. A larger RoPE base turns more slowly, so that far keys look no stranger than near ones did
(Xiong et al., arXiv:2309.16039); with it a model computes something else and has to be trained on. Full-attention layers turn with
`rope_theta`, windowed ones with `rope_local_theta`, which falls back on `rope_theta`.

Which layers are full decides how they are grouped into scanned runs, so parameters are laid out anew.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp

from plamo2_jax import checkpoint
from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.names import ModelName
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.storage import require_empty
from plamo2_jax.tokenizer.template_files import chat_template_files

Layers = Literal["all", "none"] | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a move to long context."""

    sequence_length: int
    """Of the training rows."""
    window: int
    """attention_window_size."""
    rope_theta: float
    """Base of RoPE."""


def extended_config(
    config: ModelConfig,
    *,
    window: int | None = None,
    rope_theta: float | None = None,
    rope_local_theta: float | None = None,
    full_attention: Layers | None = None,
) -> ModelConfig:
    """The shape of a model with its attention opened; what is None stays.

    A base given for full attention alone leaves windowed layers the base they had.

    Raises:
        ValueError: the window shrinks, a layer has no attention, a base is out of range, or nothing changes.
    """
    changes: dict[str, Any] = {}
    if window is not None:
        if window < config.attention_window_size:
            raise ValueError(
                f"--window {window} is not allowed: it must be at least the model's, {config.attention_window_size}; keys that a "
                "layer has seen cannot be taken away without harm"
            )
        changes["attention_window_size"] = window
    attention = tuple(i for i, kind in enumerate(config.layer_kinds) if kind is not LayerKind.MAMBA)
    full = config.full_attention_idx
    if full_attention is not None:
        full = {"all": attention, "none": ()}.get(full_attention, full_attention)
        if lost := sorted(set(config.full_attention_idx) - set(full)):
            raise ValueError(
                f"--full-attention is not allowed to leave out layers {lost}, which see everything already"
            )
        changes["full_attention_idx"] = tuple(full)
    if rope_theta is not None:
        changes["rope_theta"] = float(rope_theta)
        if full and set(full) != set(attention) and rope_local_theta is None:
            changes["rope_local_theta"] = config.local_theta
    elif config.local_theta != config.rope_theta and set(full) - set(config.full_attention_idx):
        # A layer that becomes full turns with the other base from now on, which is said by whoever wants it.
        raise ValueError(
            f"layers {sorted(set(full) - set(config.full_attention_idx))} turn with rope_local_theta={config.local_theta} and would turn "
            f"with rope_theta={config.rope_theta} under full attention; say which base you want with --rope-theta"
        )
    if rope_local_theta is not None:
        changes["rope_local_theta"] = float(rope_local_theta)
    extended = dataclasses.replace(config, **changes)
    if extended == config:
        raise ValueError("nothing changes: give --window, --rope-theta, --rope-local-theta or --full-attention")
    return extended


def relaid(params: Any, old: ModelConfig, new: ModelConfig) -> dict:
    """Parameters in the runs of another config of the same layers.

    Args:
        params: the tree of `old`.
        old: its shape.
        new: a shape that differs in nothing that decides a tensor's shape.

    Returns:
        The tree of `new`; arrays that stay as they are are shared.
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    result: dict[str, Any] = {}
    periods: dict[str, dict[int, jax.Array]] = {}
    for before, after in zip(public_tensors(old), public_tensors(new), strict=True):
        for ours, theirs in zip(before.parts, after.parts, strict=True):
            if theirs.period is None:
                result[theirs.path] = leaves[ours.path]
            else:
                periods.setdefault(theirs.path, {})[theirs.period] = leaves[ours.path][ours.period]
    for path, found in periods.items():
        result[path] = jnp.stack([found[i] for i in range(len(found))])
    wanted = flax.traverse_util.flatten_dict(abstract_params(Plamo2(new)), sep="/")
    for path, leaf in wanted.items():
        if path not in result or result[path].shape != leaf.shape:
            raise ValueError(f"parameter {path} has no counterpart of shape {list(leaf.shape)} in the model")
    return flax.traverse_util.unflatten_dict(result, sep="/")


def extend(model: str, output: str | os.PathLike[str], **changes: Any) -> ModelConfig:
    """Write a run folder with the model, its attention opened.

    Args:
        model: run folder, folder of the public layout, `RUN@STEP` or `RUN@ema`.
        output: run folder to make; it must not exist or be empty.
        changes: arguments of `extended_config`.

    Returns:
        The new shape.

    Raises:
        ValueError: a change is not allowed, or the model is missing or damaged. Nothing is left behind.
    """
    output = Path(output)
    require_empty(output)
    name = ModelName.parse(model)
    files = chat_template_files(name.folder)
    loaded = load_model(name.folder, step=name.step, ema=name.ema, require_finite=True)
    config = extended_config(loaded.config, **changes)
    params = relaid(loaded.params, loaded.config, config)
    checkpoint.save_model(output, config, params, loaded.tokenizer, files=files)
    return config


def stages(first: Stage, last: Stage, count: int) -> list[Stage]:
    """Stages after `first` up to `last`, each length a fixed multiple of the one before, window and RoPE base likewise.

    Lengths and windows are rounded to multiples of the smallest power of two in both ends, so that rows still divide into chunks.

    Raises:
        ValueError: there is no stage, or the last is not the longest.
    """
    if count < 1:
        raise ValueError(f"{count} stages are not allowed: it must be at least 1")
    if last.sequence_length < first.sequence_length or last.window < first.window:
        raise ValueError("the last stage must be at least as long as the first")

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
