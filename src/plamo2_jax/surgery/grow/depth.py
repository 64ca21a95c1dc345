"""More layers out of fewer: which old layer each new one is, and which of them are silent at first."""

from __future__ import annotations

import dataclasses
from typing import Literal

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.structure import SurgeryError, describe_kinds

Depth = Literal["stack", "interleave", "identity"]
"""stack: the whole stack over and over, the best of those compared in arXiv:2405.15319.
interleave: every period several times in a row.
identity: like interleave, but the repeats add nothing to the stream at first, so that the function stays the same."""


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """Where new layers come from.

    Attributes:
        source: the old layer that each new one copies.
        silent: whether each new one's branches are closed at first.
    """

    source: tuple[int, ...]
    silent: tuple[bool, ...]


def layer_plan(source: ModelConfig, target: ModelConfig, depth: Depth) -> LayerPlan:
    """Layers of the target from those of the source, whole periods at a time; the rest of a last, shorter period stays last.

    stack is progressive stacking (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"), G_stack of Du et al. 2024
    (arXiv:2405.15319); interleave is G_inter of the latter; identity blocks are those of LLaMA Pro (arXiv:2401.02415), whose closing
    projection is zero: here it is the closing norm's whole factor, which is exact too and which training moves at once.

    Raises:
        SurgeryError: layers would be lost, or the period differs or its rest does.
    """
    old, new = source.num_hidden_layers, target.num_hidden_layers
    if new < old:
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}; growing cannot drop layers (see plamo2 prune)"
        )
    step = source.mamba_step if source.mamba_enabled else 1
    if (source.mamba_enabled, step) != (target.mamba_enabled, target.mamba_step if target.mamba_enabled else 1):
        raise SurgeryError(
            f"the layers' pattern {describe_kinds(source)} (mamba_step={source.mamba_step}) differs from that of the target, "
            f"{describe_kinds(target)} (mamba_step={target.mamba_step}); both must have the same period"
        )
    if (new - old) % step or (new != old and old <= step // 2):
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}; whole periods are repeated, so it must grow by a multiple of {step}"
        )
    rest = old % step
    periods, wanted = old // step, new // step
    if depth == "stack":
        order = [(i % periods, False) for i in range(wanted)]
    else:
        order = [(i * periods // wanted, False) for i in range(wanted)]
        repeated = [i > 0 and order[i][0] == order[i - 1][0] for i in range(wanted)]
        order = [(index, repeat and depth == "identity") for (index, _), repeat in zip(order, repeated, strict=True)]
    layers = [(index * step + j, silent) for index, silent in order for j in range(step)]
    layers += [(old - rest + j, False) for j in range(rest)]
    return LayerPlan(tuple(origin for origin, _ in layers), tuple(silent for _, silent in layers))


def check_kinds(source: ModelConfig, target: ModelConfig, plan: LayerPlan) -> None:
    """Raise SurgeryError, naming the layer, where one that must compute what it did would see more or fewer tokens."""
    for layer, (origin, silent) in enumerate(zip(plan.source, plan.silent, strict=True)):
        old, new = source.layer_kinds[origin], target.layer_kinds[layer]
        if not silent and old is not new:
            raise SurgeryError(
                f"layer {layer} of the target is of kind {new.value!r}, layer {origin}, which it takes over, of kind {old.value!r}; the "
                "function stays only if full_attention_idx names the layers taken over"
            )


def grown_config(source: ModelConfig, target: ModelConfig, depth: Depth) -> ModelConfig:
    """The target with full attention in the layers whose source has it."""
    plan = layer_plan(source, dataclasses.replace(target, full_attention_idx=()), depth)
    full = (layer for layer, origin in enumerate(plan.source) if origin in source.full_attention_idx)
    return dataclasses.replace(target, full_attention_idx=tuple(full))


def close(declared: axes.Declaration, leaf):
    """A layer's parameter with its branches closed: the factors that end them are zero."""
    return leaf * 0 - declared.offset if declared.closes else leaf
