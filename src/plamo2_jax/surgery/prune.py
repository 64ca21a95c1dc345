"""The whole of pruning: measure, choose, measure again under the masks, cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.loss import predict_batch
from plamo2_jax.surgery.importance import Batch, Loss, Method, Scores, period_losses, score
from plamo2_jax.surgery.masks import Masks, full_masks
from plamo2_jax.surgery.select import select
from plamo2_jax.surgery.shrink import check_target, cut_config, shrink
from plamo2_jax.surgery.structure import Params

DepthMethod = Literal["same", "influence", "loss"]
"""How periods of layers are ranked. same: as `Method` ranks channels. influence: by how far they turn the stream (ShortGPT,
arXiv:2403.03853). loss: by how much the loss rises without each."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A cut network, and how it was cut."""

    config: ModelConfig
    params: Params
    masks: Masks
    scores: Scores
    """Of the last round."""


def mean_loss(config: ModelConfig) -> Loss:
    """Cross-entropy of a batch's targets by their loss weights: a function of parameters and batch."""
    model = Plamo2(config)

    def loss(params: Params, batch: Batch) -> jax.Array:
        weights = batch["loss_weights"]
        return jnp.sum(predict_batch(model, params, batch).nats * weights) / jnp.maximum(jnp.sum(weights), 1)

    return loss


def find_masks(
    params: Params,
    source: ModelConfig,
    target: ModelConfig,
    batches: Sequence[Batch],
    *,
    method: Method = "activation",
    depth: DepthMethod = "influence",
    rounds: int = 1,
    seed: int = 0,
    loss: Loss | None = None,
    on_round: Callable[[int, ModelConfig], None] | None = None,
) -> tuple[Masks, Scores]:
    """Which channels and layers stay.

    With several rounds sizes fall by equal ratios, and every round measures the network under the masks of the one before. Between rounds
    nothing is trained here; a train step can be (see `masks.apply_masks`).

    Args:
        params: of the source.
        source, target: shapes of both.
        batches: calibration data, read once a round.
        method: how channels are ranked.
        depth: how periods of layers are ranked.
        rounds: how often to measure.
        seed: of random scores.
        loss: see `importance.score`; None: cross-entropy.
        on_round: called with each round's number and shape.

    Raises:
        SurgeryError: the target cannot be cut out of the source, or there are no data.
    """
    check_target(source, target)
    loss = mean_loss(source) if loss is None else loss
    masks, scores = full_masks(source), {}
    layered = source.num_hidden_layers != target.num_hidden_layers
    for number, shape in enumerate(schedule(source, target, rounds), 1):
        scores = score(method, params, source, batches, loss, masks=masks if number > 1 else None, seed=seed)
        if layered and depth != "same" and not (depth == "influence" and method == "activation"):
            ranked = (
                period_losses(params, source, batches, loss, masks)
                if depth == "loss"
                else score("activation", params, source, batches, loss, masks=masks if number > 1 else None)
            )
            for place, shapes in ranked.items():
                if axes.LAYERS in shapes:
                    scores[place] = {**scores[place], axes.LAYERS: shapes[axes.LAYERS]}
        masks = select(scores, source, shape, masks)
        if on_round is not None:
            on_round(number, shape)
    return masks, scores


def prune(params: Params, source: ModelConfig, target: ModelConfig, batches: Sequence[Batch], **options) -> Pruned:
    """Measure, choose and cut; arguments and errors as for `find_masks`."""
    masks, scores = find_masks(params, source, target, batches, **options)
    config = cut_config(source, target, masks)
    return Pruned(config, shrink(params, masks, source, config), masks, scores)


def schedule(source: ModelConfig, target: ModelConfig, rounds: int) -> list[ModelConfig]:
    """Shapes from the source, itself left out, to the target, each axis falling by equal ratios where its groups allow it.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is not allowed: it must be at least 1")
    step = source.mamba_step if source.mamba_enabled else 1
    names = ("hidden_size", "intermediate_size", "mamba_num_heads", "mamba_d_state")

    def between(name: str, fraction: float) -> int:
        old, new = getattr(source, name), getattr(target, name)
        return max(new, round(old * (new / old) ** fraction))

    shapes = []
    for number in range(1, rounds):
        fraction = number / rounds
        sizes = {name: between(name, fraction) for name in names}
        groups = between("num_key_value_heads", fraction)
        members = [c.num_attention_heads // c.num_key_value_heads for c in (source, target)]
        sizes["num_key_value_heads"] = groups
        sizes["num_attention_heads"] = groups * max(
            members[1], round(members[0] * (members[1] / members[0]) ** fraction)
        )
        dropped = (source.num_hidden_layers - target.num_hidden_layers) // step
        sizes["num_hidden_layers"] = source.num_hidden_layers - step * round(dropped * fraction)
        shapes.append(dataclasses.replace(source, full_attention_idx=(), **sizes))
    return [*shapes, target]
