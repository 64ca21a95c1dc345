"""Next-token prediction: the loss of pretraining and of fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from plamo2_jax.data.batch import Batch
from plamo2_jax.model.bits_per_byte import make_evaluator
from plamo2_jax.model.loss import cross_entropy, predict_batch, prediction_sums
from plamo2_jax.train.config import RunConfig, TaskConfig
from plamo2_jax.train.task import LossFn, Metrics, TaskContext, TrainTask
from plamo2_jax.train.trainable import full_params
from plamo2_jax.validation import require


def next_token(
    model: nn.Module,
    byte_lengths: jax.Array,
    z_loss: float = 0.0,
    chunk: int | None = None,
    noise: Callable[[Batch, jax.Array], jax.Array] | None = None,
) -> LossFn:
    """Return the loss function of next-token prediction.

    Args:
        model: A model with the methods `features` and `logits`.
        byte_lengths: [v] int32, UTF-8 bytes of each token.
        z_loss: Coefficient of the z-loss.
        chunk: Positions of each row whose logits exist at a time; None: all.
        noise: Maps batch and random key to [b, t, d], which is added to the embedded tokens.

    Returns:
        A loss function with these sums over the batch: `weight`; `nats`, `tokens`, `bytes` and `correct` over the targets of non-zero
        weight; and `z_loss`, the part of the loss that is z-loss.
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array, frozen: Any = None) -> tuple[jax.Array, Metrics]:
        added = None if noise is None else noise(batch, rng)
        prediction, weights = predict_batch(model, params, batch, chunk, added), batch["loss_weights"]
        loss, z = cross_entropy(prediction, weights, z_loss)
        sums = prediction_sums(prediction, batch["targets"], weights, byte_lengths)
        return loss, {"weight": jnp.sum(weights), "z_loss": z_loss * z, **sums}

    return loss_fn


def heldout_evaluator(context: TaskContext, chunk: int | None) -> Callable[..., Any]:
    """Return a `TrainTask.evaluate` that measures the bits per byte of the model."""
    evaluate = make_evaluator(context.model, context.byte_lengths, chunk)
    return lambda params, batches, frozen: evaluate(params, batches)


@dataclasses.dataclass(frozen=True)
class Pretrain(TaskConfig):
    """Train all parameters of the model on text.

    Raises:
        PlamoError: A field is out of range.
    """

    kind: ClassVar[str] = "pretrain"

    z_loss: float = 1e-4
    """Coefficient of the z-loss log(Z)², which keeps logits from drifting (PaLM, arXiv:2204.02311); 0 turns it off."""

    def __post_init__(self) -> None:
        require(self, "z_loss", 0 <= self.z_loss < math.inf, "zero or positive, and finite")

    def make_task(self, run: RunConfig, context: TaskContext) -> TrainTask:
        """Make the task: all parameters of the model, next-token cross-entropy."""
        return TrainTask(
            loss_fn=next_token(context.model, context.byte_lengths, self.z_loss, run.loss_chunk),
            trainable=full_params(context.model, run.init_from, run.seed),
            evaluate=heldout_evaluator(context, run.loss_chunk),
        )
