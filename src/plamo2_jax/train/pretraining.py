"""Next-token prediction: the loss of pretraining and of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from plamo2_jax.eval.perplexity import Prediction, make_evaluator, predict_batch, prediction_sums
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.task import Batch, LossFn, Metrics, TaskContext, TrainTask
from plamo2_jax.train.trainable import full_params


def cross_entropy(prediction: Prediction, weights: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token cross-entropy with z-loss, in float32.

    The z-loss, z_loss * log(Z)^2 with Z the softmax's normaliser, keeps logits from drifting (PaLM, arXiv:2204.02311, section 5).

    Args:
        prediction: what the logits say of each target [b, t].
        weights: [b, t] float32; 0 leaves a position out.
        z_loss: coefficient of the z-loss.

    Returns:
        The mean loss (a scalar, 0 where all weights are 0), and the weighted sum of log(Z)^2.
    """
    z = jnp.sum(weights * jnp.square(prediction.log_z))
    total = jnp.sum(weights * prediction.nats) + z_loss * z
    return total / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny), z


def next_token(
    model: nn.Module,
    byte_lengths: jax.Array,
    z_loss: float = 0.0,
    chunk: int | None = None,
    noise: Callable[[Batch, jax.Array], jax.Array] | None = None,
) -> LossFn:
    """Return the loss function of next-token prediction.

    Args:
        model: maps tokens, segment ids and positions to logits.
        byte_lengths: [v] int32, UTF-8 bytes of each token.
        z_loss: coefficient of the z-loss.
        chunk: positions of each row whose logits exist at a time; None: all. See `predict_batch`.
        noise: `(batch, rng)` → [b, t, d], added to the embedded tokens; None adds nothing.

    Returns:
        A loss function whose sums over the batch are `weight`; `nats`, `tokens`, `bytes` and `correct` over the targets of non-zero
        weight; and `z_loss`, the z-loss's part of the loss.
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array, frozen: Any = None) -> tuple[jax.Array, Metrics]:
        added = None if noise is None else noise(batch, rng)
        prediction, weights = predict_batch(model, params, batch, chunk, added), batch["loss_weights"]
        loss, z = cross_entropy(prediction, weights, z_loss)
        sums = prediction_sums(prediction, batch["targets"], weights, byte_lengths)
        return loss, {"weight": jnp.sum(weights), "z_loss": z_loss * z, **sums}

    return loss_fn


def heldout_evaluator(context: TaskContext, chunk: int | None) -> Callable[..., Any]:
    """Return `TrainTask.evaluate` that measures bits per byte of the model."""
    evaluate = make_evaluator(context.model, context.byte_lengths, chunk)
    return lambda params, batches, frozen: evaluate(params, batches)


def pretraining_task(config: PretrainConfig, context: TaskContext) -> TrainTask:
    """Return the task of a pretraining run: all parameters of the model, next-token cross-entropy.

    Raises:
        ValueError: `init_from` is of another shape, damaged, or no model.
    """
    return TrainTask(
        loss_fn=next_token(context.model, context.byte_lengths, config.z_loss, config.loss_chunk),
        trainable=full_params(context.model, config.init_from, config.seed),
        evaluate=heldout_evaluator(context, config.loss_chunk),
    )
