"""What training minimises: a pure function of parameters, a batch and a random key.

An objective returns `(loss, metrics)`. The loss is a weighted mean over the batch; `metrics` are scalar float32 sums, so that those
of several micro-batches or steps add up. `metrics["weight"]` is what the loss is a mean over: the train step weighs micro-batches
by it, and `means` divides the sums by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from plamo2_jax.model.loss import cross_entropy, predict_batch, prediction_sums

PROCESSED = "processed"
"""Name of the count of a step's tokens, trained on or not. The train step adds it to the sums of the objective."""

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Objective(Protocol):
    """Anything one train step can minimise: pretraining, fine-tuning, preferences, distillation.

    One that needs arrays which are not trained (a teacher's parameters) has them as the attribute `frozen` and gets them back as a
    fourth argument. One that needs more of a batch than its tokens has `augment` (a batch on the host → the same with more) and
    `extra` (name → shape after [b, t] and dtype of what that adds, or of what its data source adds). One that trains something else
    than the model's parameters says what as `trained` (`train.trained.Trained`), and has `whole` (what is trained → the model's
    parameters). One whose sums are not all over `weight` says over what as `over` (see `means`). One whose held-out figures are not bits
    per byte has `evaluate`: parameters and batches → something with a method `figures()`, names and numbers. One that runs other models
    forward on the same tokens lists their shapes as `forward_only`, for the FLOPs of a step. JSON values that belong into config.json, and
    must be the same when the run goes on, are its `description`.
    """

    def __call__(self, params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """The loss of a batch, and sums about it."""


def means(sums: Mapping[str, float], over: Mapping[str, str]) -> dict[str, float]:
    """The figures of an objective's sums: each sum by what it is over, in order of their names.

    Args:
        sums: an objective's, `weight` among them.
        over: name of a sum → name of the sum that counts what it is over, where that is not `weight`.

    Returns:
        By name, without the counts and without a mean over nothing.
    """
    counts = {"weight", *over.values()}
    totals = {name: sums[over.get(name, "weight")] for name in sorted(sums.keys() - counts)}
    return {name: sums[name] / total for name, total in totals.items() if total}


def next_token(model: nn.Module, byte_lengths: jax.Array, z_loss: float = 0.0, chunk: int | None = None) -> Objective:
    """The pretraining objective.

    Args:
        model: a model with the methods `features` and `logits`.
        byte_lengths: [v] int32, UTF-8 bytes each token stands for.
        z_loss: coefficient of the z-loss.
        chunk: positions of each row whose logits exist at a time; None: all.

    Returns:
        An objective whose metrics are sums over the batch: `weight`; `nats`, `tokens`, `bytes` and `correct` over the targets of
        non-zero weight; `z_loss`, the z-loss's part of the loss.
    """

    def objective(params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        del rng  # The model has no dropout.
        prediction, weights = predict_batch(model, params, batch, chunk), batch["loss_weights"]
        loss, z = cross_entropy(prediction, weights, z_loss)
        sums = prediction_sums(prediction, batch["targets"], weights, byte_lengths)
        return loss, {"weight": jnp.sum(weights), "z_loss": z_loss * z, **sums}

    return objective
