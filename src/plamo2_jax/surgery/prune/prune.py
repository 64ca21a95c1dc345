"""Pruning from end to end: score channels, choose masks, score again with the masks applied, cut the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.loss import predict_batch
from plamo2_jax.surgery.prune.cut import check_target, cut_config, cut_params
from plamo2_jax.surgery.prune.importance import Loss, Method, period_losses, score
from plamo2_jax.surgery.prune.masks import Masks
from plamo2_jax.surgery.prune.selection import select_masks
from plamo2_jax.surgery.structure import Params

DepthMethod = Literal["same", "influence", "loss"]
"""How periods of layers are scored.
same: with the method of the channels.
influence: by the angle between their input and output residual stream (ShortGPT, arXiv:2403.03853).
loss: by the rise of the loss without them."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model."""

    config: ModelConfig
    params: Params


def mean_loss(config: ModelConfig) -> Loss:
    """Return the loss function of a model: weighted mean cross-entropy in nats per token."""
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
) -> Masks:
    """Return masks of the channels and layers that stay.

    With several rounds, sizes shrink by equal ratios, and each round scores the model under the masks of the round before. Parameters are
    not trained between rounds.

    Args:
        params: Parameters of the source.
        batches: Calibration batches, read once per round.
        method: How channels are scored.
        depth: How periods of layers are scored.
        seed: Random seed for method random.

    Raises:
        SurgeryError: The target cannot be cut out of the source, or there is no calibration data.
    """
    check_target(source, target)
    loss, masks = mean_loss(source), None
    layered = source.num_hidden_layers != target.num_hidden_layers
    for shape in schedule(source, target, rounds):
        scores = score(method, params, source, batches, loss, masks=masks, seed=seed)
        if layered and depth != "same" and not (depth == "influence" and method == "activation"):
            if depth == "loss":
                ranked = period_losses(params, source, batches, loss, masks)
            else:
                ranked = score("activation", params, source, batches, loss, masks=masks)
            for place, shapes in ranked.items():
                if axes.LAYERS in shapes:
                    scores[place] = {**scores[place], axes.LAYERS: shapes[axes.LAYERS]}
        masks = select_masks(scores, source, shape, masks)
    return masks


def prune(params: Params, source: ModelConfig, target: ModelConfig, batches: Sequence[Batch], **options) -> Pruned:
    """Choose masks and cut the model. Arguments and errors are the same as for `find_masks`."""
    masks = find_masks(params, source, target, batches, **options)
    config = cut_config(source, target, masks)
    return Pruned(config, cut_params(params, masks, source, config))


def schedule(source: ModelConfig, target: ModelConfig, rounds: int) -> list[ModelConfig]:
    """Return the target shape of each round. Every size shrinks by equal ratios, as far as head groups allow; the last is the target.

    Raises:
        PlamoError: `rounds` is below 1.
    """
    if rounds < 1:
        raise PlamoError(f"rounds={rounds} is not allowed: it must be at least 1")
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
        dropped = (source.num_hidden_layers - target.num_hidden_layers) // source.period
        sizes["num_hidden_layers"] = source.num_hidden_layers - source.period * round(dropped * fraction)
        shapes.append(dataclasses.replace(source, full_attention_idx=(), **sizes))
    return [*shapes, target]
