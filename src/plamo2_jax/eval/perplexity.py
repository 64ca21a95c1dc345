"""Held-out bits per byte: what one pass over held-out text costs a model, by bytes, so that vocabularies do not matter.

The nats of all targets are summed, end-of-document targets included (whose text has no bytes), divided by ln 2 and by the UTF-8
bytes of the text. One pass, nothing averaged over batches.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from plamo2_jax.model.axes import SEQUENCE


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

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinite where that leaves float64."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name, as they go into files."""
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


def predict_batch(
    model: nn.Module,
    params: Any,
    batch: Mapping[str, jax.Array],
    chunk: int | None = None,
    embedding_noise: jax.Array | None = None,
) -> Prediction:
    """What a model says of a batch's targets.

    With `chunk` the logits of that many positions of each row exist at a time: [b, chunk, v] instead of [b, t, v], in the backward
    pass too, which computes them again.

    Args:
        model: maps tokens, segment ids and positions to logits; with `chunk`, has the methods `features` and `logits` too.
        params: its parameters.
        batch: arrays [b, t].
        chunk: positions; None: all at once.
        embedding_noise: [b, t, d], added to the embedded tokens; the model then has the methods `features` and `logits` too.

    Raises:
        ValueError: `chunk` does not divide t, or the mesh axis that tokens are divided over does not divide `chunk`.
    """
    variables, inputs = {"params": params}, (batch["tokens"], batch["segment_ids"], batch["positions"])
    if chunk is None and embedding_noise is None:
        logits, _ = model.apply(variables, *inputs)
        return predict(logits, batch["targets"])
    b, t = batch["tokens"].shape
    chunk = t if chunk is None else chunk
    parts = 1 if model.mesh is None else model.mesh.shape[SEQUENCE]
    if t % chunk or chunk % parts:
        raise ValueError(
            f"loss_chunk={chunk} is not allowed: it must divide the {t} positions of a row, and {parts} must divide it"
        )
    features, _ = model.apply(variables, *inputs, embedding_noise=embedding_noise, method="features")

    def cut(array: jax.Array) -> jax.Array:
        """[b, t, ...] to [t / chunk, b, chunk, ...]; each chunk has positions of every device's part of the row."""
        pieces = array.reshape(b, parts, t // chunk, chunk // parts, *array.shape[2:])
        return jnp.moveaxis(pieces, 2, 0).reshape(t // chunk, b, chunk, *array.shape[2:])

    def join(array: jax.Array) -> jax.Array:
        pieces = array.reshape(t // chunk, b, parts, chunk // parts)
        return jnp.moveaxis(pieces, 0, 2).reshape(b, t)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry: None, piece: tuple[jax.Array, jax.Array]) -> tuple[None, Prediction]:
        x, targets = piece
        return carry, predict(model.apply(variables, x, method="logits"), targets)

    _, prediction = jax.lax.scan(step, None, (cut(features), cut(batch["targets"])))
    return Prediction(*map(join, prediction))


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
    model: nn.Module, byte_lengths: np.ndarray, chunk: int | None = None
) -> Callable[[Any, Iterable[Mapping[str, np.ndarray]]], HeldOut]:
    """A function `(params, batches) -> HeldOut`, compiled once for each shape of batch.

    Args:
        model: maps tokens, segment ids and positions to logits.
        byte_lengths: [v] int32, UTF-8 bytes each token stands for.
        chunk: see `predict_batch`.
    """

    @jax.jit
    def batch_sums(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        prediction = predict_batch(model, params, batch, chunk)
        return prediction_sums(prediction, batch["targets"], batch["loss_weights"], jnp.asarray(byte_lengths))

    def evaluate(params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> HeldOut:
        pending = [batch_sums(params, batch) for batch in batches]
        # Batches are added in float64 on the host: float32 would drop small ones.
        total = {name: sum(float(sums[name]) for sums in pending) for name in ("nats", "tokens", "bytes", "correct")}
        if not total["bytes"]:
            raise ValueError("the held-out text is empty: there is no byte to predict")
        return HeldOut(total["nats"], int(total["tokens"]), int(total["bytes"]), int(total["correct"]))

    return evaluate
