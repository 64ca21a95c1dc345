"""Held-out bits per byte: what one pass over held-out text costs a model, by bytes, so that vocabularies do not matter.

The nats of all targets are summed, end-of-document targets included (whose text has no bytes), divided by ln 2 and by the UTF-8
bytes of the text. One pass, nothing averaged over batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Sums over held-out text, and what follows from them."""

    nats: float
    """Sum of -ln p over the targets."""
    tokens: int
    """Number of targets."""
    bytes: int
    """UTF-8 bytes of the targets' text."""
    correct: int
    """Targets that were the model's first choice."""

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for a byte of text."""
        return self.nats / math.log(2) / self.bytes

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    def figures(self) -> dict[str, float]:
        """All figures by name, as they go into files."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "loss": self.loss,
            "accuracy": self.correct / self.tokens,
            **dataclasses.asdict(self),
        }


class Prediction(NamedTuple):
    """What logits say of their targets."""

    nats: jax.Array
    """-ln p of each target [b, t] float32."""
    log_z: jax.Array
    """Log of the softmax's normaliser [b, t] float32."""
    correct: jax.Array
    """Whether no other token is likelier [b, t] bool."""


def predict(logits: jax.Array, targets: jax.Array) -> Prediction:
    """Nats, normaliser and first choices in float32; logits [b, t, v], targets [b, t]."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum instead of a gather, whose gradient would be a scatter into zeros of the logits' size.
    chosen = targets[..., None] == jnp.arange(logits.shape[-1])
    target_logits = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    return Prediction(log_z - target_logits, log_z, target_logits >= jnp.max(logits, axis=-1))


def prediction_sums(
    prediction: Prediction, targets: jax.Array, weights: jax.Array, byte_lengths: jax.Array
) -> dict[str, jax.Array]:
    """Scalar float32 sums over the targets of non-zero weight: nats, tokens, bytes and correct first choices.

    Args:
        prediction: from `predict`.
        targets: [b, t] int32.
        weights: [b, t]; 0 leaves a position out, any other value counts it once.
        byte_lengths: [v] int32, UTF-8 bytes each token stands for.
    """
    counted = weights != 0
    sums = {
        "nats": prediction.nats,
        "tokens": jnp.ones_like(prediction.nats),
        "bytes": byte_lengths[targets],
        "correct": prediction.correct,
    }
    return {name: jnp.sum(jnp.where(counted, value, 0), dtype=jnp.float32) for name, value in sums.items()}


def make_evaluator(
    model: nn.Module, byte_lengths: np.ndarray
) -> Callable[[Any, Iterable[Mapping[str, np.ndarray]]], HeldOut]:
    """A function `(params, batches) -> HeldOut`, compiled once for each shape of batch.

    Args:
        model: maps tokens, segment ids and positions to logits.
        byte_lengths: [v] int32, UTF-8 bytes each token stands for.
    """

    @jax.jit
    def batch_sums(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        logits, _ = model.apply({"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"])
        prediction = predict(logits, batch["targets"])
        return prediction_sums(prediction, batch["targets"], batch["loss_weights"], jnp.asarray(byte_lengths))

    def evaluate(params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> HeldOut:
        pending = [batch_sums(params, batch) for batch in batches]
        # Batches are added in float64 on the host: float32 would drop small ones.
        total = {name: sum(float(sums[name]) for sums in pending) for name in ("nats", "tokens", "bytes", "correct")}
        if not total["bytes"]:
            raise ValueError("the held-out text is empty: there is no byte to predict")
        return HeldOut(total["nats"], int(total["tokens"]), int(total["bytes"]), int(total["correct"]))

    return evaluate
