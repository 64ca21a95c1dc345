"""Pruning from end to end: score channels, choose masks, score again under the masks, cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.loss import predict_batch
from plamo2_jax.surgery.prune.cut import check_target, cut_config, cut_params
from plamo2_jax.surgery.prune.importance import Loss, Method, Scores, period_losses, score
from plamo2_jax.surgery.prune.masks import Masks, full_masks
from plamo2_jax.surgery.prune.selection import select_masks
from plamo2_jax.surgery.structure import Params

DepthMethod = Literal["same", "influence", "loss"]
"""How periods of layers are scored.
same: with the method of the channels.
influence: by the angle between their input and output residual stream (ShortGPT, arXiv:2403.03853).
loss: by the rise of the loss without them."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model, with the masks and scores it was cut by."""

    config: ModelConfig
    params: Params
    masks: Masks
    scores: Scores
    """Scores of the last round."""


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
    loss: Loss | None = None,
    on_round: Callable[[int, ModelConfig], None] | None = None,
) -> tuple[Masks, Scores]:
    """Choose the channels and layers that stay.

    With several rounds, sizes shrink by equal ratios, and each round scores the model under the masks of the round before. Parameters are
    not trained between rounds.

    Args:
        params: Parameters of the source.
        source, target: Configs of both models.
        batches: Calibration batches, read once per round.
        method: How channels are scored.
        depth: How periods of layers are scored.
        rounds: Number of rounds.
        seed: Random seed for method random.
        loss: Loss function; None selects cross-entropy.
        on_round: Called with the number and the target shape of each round.

    Returns:
        The masks, and the scores of the last round.

    Raises:
        SurgeryError: The target cannot be cut out of the source, or there is no calibration data.
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
        masks = select_masks(scores, source, shape, masks)
        if on_round is not None:
            on_round(number, shape)
    return masks, scores


def prune(params: Params, source: ModelConfig, target: ModelConfig, batches: Sequence[Batch], **options) -> Pruned:
    """Choose masks and cut the model. Arguments and errors are those of `find_masks`."""
    masks, scores = find_masks(params, source, target, batches, **options)
    config = cut_config(source, target, masks)
    return Pruned(config, cut_params(params, masks, source, config), masks, scores)


def schedule(source: ModelConfig, target: ModelConfig, rounds: int) -> list[ModelConfig]:
    """Return the target shape of each round. Every size shrinks by equal ratios, as far as head groups allow; the last is the target.

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise PlamoError(f"rounds={rounds} is not allowed: it must be at least 1")
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
