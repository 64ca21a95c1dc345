"""Growing in depth: which source layer each new layer copies, and which new layers have zero output at first."""

from __future__ import annotations

import dataclasses
from typing import Literal

from plamo2_jax.config import ModelConfig
from plamo2_jax.surgery.structure import SurgeryError, require_equal

Depth = Literal["stack", "interleave", "identity"]
"""How layers are repeated.
stack: repeat the whole stack; the best method in the comparison of arXiv:2405.15319.
interleave: repeat each period several times in a row.
identity: like interleave, but repeated layers add nothing to the residual stream at first, so the function stays the same."""


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The source of each new layer."""

    source: tuple[int, ...]
    """For each new layer, the number of the source layer that it copies."""
    silent: tuple[bool, ...]
    """For each new layer, whether its residual branches have zero output at first."""


def layer_plan(source: ModelConfig, target: ModelConfig, depth: Depth) -> LayerPlan:
    """Return which source layer each target layer copies. Whole periods are copied; a shorter last period stays last.

    stack is progressive stacking (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"; G_stack of Du et al. 2024,
    arXiv:2405.15319). interleave is G_inter of the same paper. identity follows LLaMA Pro (arXiv:2401.02415), which zeroes the output
    projection of a new block; here the factor of the norm at the end of the branch is zero. This is also exact, and the factor has a
    gradient from the first step.

    Raises:
        SurgeryError: The target has fewer layers, another period, or a number of layers that whole periods cannot give, or a field that
            growing does not change differs.
    """
    require_equal(source, target, ("tie_word_embeddings", "rms_norm_eps"), "growing")
    old, new, step = source.num_hidden_layers, target.num_hidden_layers, source.period
    if new < old:
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}: growing cannot remove layers. Use plamo2 prune"
        )
    if (new - old) % step or (new != old and old < step):
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}: whole periods are repeated, so it must grow by a multiple of {step}"
        )
    periods, wanted = old // step, new // step
    order = [i % periods if depth == "stack" else i * periods // wanted for i in range(wanted)]
    silent = [depth == "identity" and i > 0 and order[i] == order[i - 1] for i in range(wanted)]
    rest = range(periods * step, old)
    layers = [index * step + j for index in order for j in range(step)]
    return LayerPlan((*layers, *rest), (*(each for each in silent for _ in range(step)), *(False for _ in rest)))


def check_kinds(source: ModelConfig, target: ModelConfig, plan: LayerPlan) -> None:
    """Raise SurgeryError unless each new layer with output has the attention kind (window or full) of its source layer."""
    for layer, (origin, silent) in enumerate(zip(plan.source, plan.silent, strict=True)):
        old, new = source.layer_kinds[origin], target.layer_kinds[layer]
        if not silent and old is not new:
            raise SurgeryError(
                f"layer {layer} of the target has kind {new.value!r}, but it copies layer {origin} of kind {old.value!r}: both must have "
                "the same kind, or the function changes. Change full_attention_idx of the target"
            )


def grown_config(source: ModelConfig, target: ModelConfig, depth: Depth) -> ModelConfig:
    """Return the target config with full attention in the layers that copy a layer with full attention."""
    plan = layer_plan(source, dataclasses.replace(target, full_attention_idx=()), depth)
    full = (layer for layer, origin in enumerate(plan.source) if origin in source.full_attention_idx)
    return dataclasses.replace(target, full_attention_idx=tuple(full))
