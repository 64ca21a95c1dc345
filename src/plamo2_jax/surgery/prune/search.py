"""Search for the target shape of pruning: divide a budget between depth and width, and keep the shape of lowest loss after pruning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.surgery.prune.prune import Pruned, mean_loss, prune
from plamo2_jax.surgery.structure import Params, SurgeryError

Cost = Callable[[ModelConfig], float]
"""Function of a config that returns its cost: number of parameters, or FLOPs per token."""


def candidates(
    source: ModelConfig,
    budget: float,
    cost: Cost,
    *,
    multiple_of: int = 1,
    least_depth: float = 0.5,
    mlp_ratios: Sequence[float] = (0.5, 0.75, 1.0),
) -> list[ModelConfig]:
    """Return the widest shape within a budget for each depth and each MLP ratio (as in the search of Minitron, arXiv:2407.14679).

    Numbers of heads and state sizes stay the same, as in the published pruning of the 8B to the 2B.

    Args:
        source: Config of the model to prune.
        budget: Largest allowed cost.
        cost: Cost function, for example `ModelConfig.parameter_count`.
        multiple_of: Hidden and MLP sizes are multiples of this.
        least_depth: Smallest number of layers, as a fraction of the number in the source.
        mlp_ratios: MLP size / hidden size, as fractions of this ratio in the source.

    Raises:
        SurgeryError: No shape fits.
    """
    step = source.period
    rest = source.num_hidden_layers % step
    found: list[ModelConfig] = []
    for layers in range(source.num_hidden_layers, 0, -step):
        if layers < source.num_hidden_layers and (
            layers < least_depth * source.num_hidden_layers or layers - rest < step
        ):
            break
        for ratio in mlp_ratios:
            shape = _widest(source, layers, ratio, budget, cost, multiple_of)
            if shape is not None and shape not in found:
                found.append(shape)
    if not found:
        raise SurgeryError(
            f"no shape with at least {least_depth:g} of {source.num_hidden_layers} layers and sizes in multiples of {multiple_of} fits "
            f"a budget of {budget:,.0f} (the source costs {cost(source):,.0f}). Raise the budget"
        )
    return found


def _widest(
    source: ModelConfig, layers: int, ratio: float, budget: float, cost: Cost, multiple_of: int
) -> ModelConfig | None:
    for hidden in range(source.hidden_size // multiple_of * multiple_of, 0, -multiple_of):
        mlp = source.intermediate_size * ratio * hidden / source.hidden_size
        mlp = max(int(mlp) // multiple_of * multiple_of, multiple_of)
        shape = dataclasses.replace(
            source,
            hidden_size=hidden,
            intermediate_size=min(mlp, source.intermediate_size),
            num_hidden_layers=layers,
            # Which layers are kept is not known yet; `cut_config` sets the final value.
            full_attention_idx=tuple(i for i in source.full_attention_idx if i < layers),
        )
        if cost(shape) <= budget:
            return shape
    return None


def prune_best(
    params: Params,
    source: ModelConfig,
    shapes: Sequence[ModelConfig],
    batches: Sequence[Batch],
    *,
    on_pruned: Callable[[ModelConfig, float], None] | None = None,
    **options,
) -> Pruned:
    """Prune to each shape and return the pruned model with the lowest loss on the calibration batches.

    Args:
        shapes: Target shapes, for example from `candidates`.
        batches: Calibration batches, used for the scores and for the loss.
        on_pruned: Called with each pruned shape and its loss in nats per token.
        options: Further arguments of `find_masks`.
    """
    best, lowest = None, float("inf")
    for shape in shapes:
        pruned = prune(params, source, shape, batches, **options)
        measure = jax.jit(mean_loss(pruned.config))
        loss = sum(float(measure(pruned.params, batch)) for batch in batches) / len(batches)
        if on_pruned is not None:
            on_pruned(pruned.config, loss)
        if best is None or loss < lowest:
            best, lowest = pruned, loss
    return best
