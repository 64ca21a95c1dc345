"""Next-token loss from logits, and functions of logits that never hold the logits of whole rows.

Logits [b, t, v] are the largest array of a step: `map_logits` computes them for `chunk` positions of each row at a time. Training,
distillation, preference losses and evaluation all read logits through it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from plamo2_jax.errors import PlamoError
from plamo2_jax.model.axes import SEQUENCE


class Prediction(NamedTuple):
    """What logits predict about their targets."""

    nats: jax.Array
    """-ln p of each target [b, t] float32."""
    log_z: jax.Array
    """Log of the softmax's normalizer [b, t] float32."""
    correct: jax.Array
    """Whether no other token is likelier [b, t] bool."""


def predict(logits: jax.Array, targets: jax.Array) -> Prediction:
    """Nats, normalizers and first choices in float32; logits [b, t, v], targets [b, t]."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum instead of a gather, whose gradient would be a scatter into zeros of the logits' size.
    chosen = targets[..., None] == jnp.arange(logits.shape[-1])
    target_logits = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    return Prediction(log_z - target_logits, log_z, target_logits >= jnp.max(logits, axis=-1))


def map_logits(
    model: nn.Module,
    params: Any,
    features: jax.Array,
    fn: Callable[[jax.Array, Any], Any],
    arrays: Any,
    chunk: int | None,
) -> Any:
    """Apply a function to the logits of each position, `chunk` positions of each row at a time.

    With `chunk`, logits are [b, chunk, v] in the backward pass too, which computes them again. Each chunk holds positions from every
    device's part of a row that is divided over the mesh axis `sequence`, so that no chunk moves between devices.

    Args:
        model: a model with a method `logits`.
        params: its parameters.
        features: [b, t, d], from the model's method `features`.
        fn: maps logits [b, c, v] and `arrays` cut to [b, c, ...] to a tree of arrays [b, c, ...]; one position must not depend on
            another.
        arrays: tree of arrays [b, t, ...].
        chunk: positions of each row whose logits exist at a time; None: all, kept for the backward pass.

    Returns:
        What `fn` returns, with t positions.

    Raises:
        ValueError: `chunk` does not divide t, or the mesh axis that tokens are divided over does not divide `chunk`.
    """

    def apply(x: jax.Array, arrays: Any) -> Any:
        return fn(model.apply({"params": params}, x, method="logits"), arrays)

    if chunk is None:
        return apply(features, arrays)
    b, t = features.shape[:2]
    parts = _sequence_parts(model)
    if t % chunk or chunk % parts:
        raise PlamoError(
            f"loss_chunk={chunk} is not allowed: it must divide the {t} positions of a row, and {parts} must divide it"
        )

    def cut(array: jax.Array) -> jax.Array:
        """[b, t, ...] to [t / chunk, b, chunk, ...]."""
        pieces = array.reshape(b, parts, t // chunk, chunk // parts, *array.shape[2:])
        return jnp.moveaxis(pieces, 2, 0).reshape(t // chunk, b, chunk, *array.shape[2:])

    def join(array: jax.Array) -> jax.Array:
        pieces = array.reshape(t // chunk, b, parts, chunk // parts, *array.shape[3:])
        return jnp.moveaxis(pieces, 0, 2).reshape(b, t, *array.shape[3:])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry: None, piece: tuple[jax.Array, Any]) -> tuple[None, Any]:
        return carry, apply(*piece)

    _, results = jax.lax.scan(step, None, jax.tree.map(cut, (features, arrays)))
    return jax.tree.map(join, results)


def _sequence_parts(model: nn.Module) -> int:
    """Return the number of parts that a row is divided into over the devices of a model."""
    return 1 if model.mesh is None else model.mesh.shape[SEQUENCE]


def largest_chunk(model: nn.Module, length: int, limit: int) -> int:
    """Return the largest chunk of about `limit` positions at most that `map_logits` takes for rows of `length` positions."""
    parts = _sequence_parts(model)
    part = length // parts
    return parts * max(size for size in range(1, min(part, max(1, limit // parts)) + 1) if part % size == 0)


def predict_batch(
    model: nn.Module,
    params: Any,
    batch: Mapping[str, jax.Array],
    chunk: int | None = None,
    embedding_noise: jax.Array | None = None,
) -> Prediction:
    """Predict a batch's targets.

    Args:
        model: a model with the methods `features` and `logits`.
        params: its parameters.
        batch: arrays [b, t].
        chunk: positions of each row whose logits exist at a time; None: all. `map_logits` explains it.
        embedding_noise: [b, t, d], added to the embedded tokens.

    Raises:
        ValueError: `chunk` is not allowed, as in `map_logits`.
    """
    inputs = (batch["tokens"], batch["segment_ids"], batch["positions"])
    features, _ = model.apply({"params": params}, *inputs, embedding_noise=embedding_noise, method="features")
    return map_logits(model, params, features, predict, batch["targets"], chunk)


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


def cross_entropy(prediction: Prediction, weights: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token cross-entropy with z-loss, in float32.

    The z-loss, z_loss * log(Z)^2 with Z the softmax's normalizer, keeps logits from drifting (PaLM, arXiv:2204.02311, section 5).

    Args:
        prediction: from `predict`, [b, t].
        weights: [b, t] float32; 0 leaves a position out.
        z_loss: coefficient of the z-loss.

    Returns:
        The mean loss (a scalar, 0 where all weights are 0), and the weighted sum of log(Z)^2.
    """
    z = jnp.sum(weights * jnp.square(prediction.log_z))
    total = jnp.sum(weights * prediction.nats) + z_loss * z
    return total / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny), z
