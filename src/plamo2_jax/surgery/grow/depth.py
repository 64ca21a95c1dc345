"""Growing in depth: which source layer each new layer copies, and which new layers have zero output at first."""

from __future__ import annotations

import dataclasses
from typing import Literal

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.structure import SurgeryError, describe_kinds

Depth = Literal["stack", "interleave", "identity"]
"""How layers are repeated.
stack: repeat the whole stack; the best method in the comparison of arXiv:2405.15319.
interleave: repeat each period several times in a row.
identity: like interleave, but repeated layers add nothing to the residual stream at first, so the function stays the same."""


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The source of each new layer.

    Attributes:
        source: For each new layer, the number of the source layer that it copies.
        silent: For each new layer, whether its residual branches have zero output at first.
    """

    source: tuple[int, ...]
    silent: tuple[bool, ...]


def layer_plan(source: ModelConfig, target: ModelConfig, depth: Depth) -> LayerPlan:
    """Return which source layer each target layer copies. Whole periods are copied; a shorter last period stays last.

    stack is progressive stacking (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"; G_stack of Du et al. 2024,
    arXiv:2405.15319). interleave is G_inter of the same paper. identity follows LLaMA Pro (arXiv:2401.02415), which zeroes the output
    projection of a new block; here the factor of the norm at the end of the branch is zero. This is also exact, and the factor has a
    gradient from the first step.

    Raises:
        SurgeryError: The target has fewer layers, another period, or a number of layers that whole periods cannot give.
    """
    old, new = source.num_hidden_layers, target.num_hidden_layers
    if new < old:
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}: growing cannot remove layers. Use plamo2 prune"
        )
    step = source.mamba_step if source.mamba_enabled else 1
    if (source.mamba_enabled, step) != (target.mamba_enabled, target.mamba_step if target.mamba_enabled else 1):
        raise SurgeryError(
            f"the layer pattern {describe_kinds(source)} (mamba_step={source.mamba_step}) differs from the target's pattern, "
            f"{describe_kinds(target)} (mamba_step={target.mamba_step}): both must have the same period"
        )
    if (new - old) % step or (new != old and old <= step // 2):
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}: whole periods are repeated, so it must grow by a multiple of {step}"
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
    """Check that each new layer with output has the attention kind (window or full) of its source layer.

    Raises:
        SurgeryError: The kinds differ, so the function would change. The message names the layer.
    """
    for layer, (origin, silent) in enumerate(zip(plan.source, plan.silent, strict=True)):
        old, new = source.layer_kinds[origin], target.layer_kinds[layer]
        if not silent and old is not new:
            raise SurgeryError(
                f"layer {layer} of the target has kind {new.value!r}, but it copies layer {origin} of kind {old.value!r}: both must have "
                "the same kind, or the function changes. Change full_attention_idx of the target"
            )


def grown_config(source: ModelConfig, target: ModelConfig, depth: Depth) -> ModelConfig:
    """Return the target config with full attention in the layers whose source layer has it."""
    plan = layer_plan(source, dataclasses.replace(target, full_attention_idx=()), depth)
    full = (layer for layer, origin in enumerate(plan.source) if origin in source.full_attention_idx)
    return dataclasses.replace(target, full_attention_idx=tuple(full))


def close(declared: axes.Declaration, leaf):
    """Return a layer's parameter such that the layer's residual branches have zero output: the final norm factors are zero."""
    return leaf * 0 - declared.norm_offset if declared.ends_residual else leaf
