"""Next-token loss, and the computation of logits in chunks.

Logits [b, t, v] are the largest array of a training step, so `map_logits` computes them for `chunk` positions of each row at a time.
Training, distillation, preference losses and evaluation all use it.
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
    """What logits predict about the targets."""

    nats: jax.Array
    """-log p of each target, [b, t] float32."""
    log_z: jax.Array
    """Logarithm of the softmax normalizer Z, [b, t] float32."""
    correct: jax.Array
    """Whether no other token has a higher probability, [b, t] bool."""


@jax.custom_vjp
def predict(logits: jax.Array, targets: jax.Array) -> Prediction:
    """Compute in float32 what logits [b, t, v] predict about targets [b, t].

    The gradient is written by hand: XLA on CPU would store several arrays of the size of the logits for the gradient of autodiff.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)

    def gathered(logits, targets):
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]

    def summed(logits, targets):
        # A gather would move logits between devices that share the vocabulary.
        return jnp.sum(jnp.where(_is_target(logits, targets), logits, 0), axis=-1)

    target_logits = jax.lax.platform_dependent(logits, targets, cpu=gathered, default=summed)
    return Prediction(log_z - target_logits, log_z, target_logits >= jnp.max(logits, axis=-1))


def _is_target(logits, targets):
    return targets[..., None] == jnp.arange(logits.shape[-1])


def _predict_forward(logits, targets):
    prediction = predict(logits, targets)
    return prediction, (logits, targets, prediction.log_z)


def _predict_backward(saved, cotangent):
    logits, targets, log_z = saved
    of_nats, of_log_z = cotangent.nats[..., None], cotangent.log_z[..., None]
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
    gradient = probabilities * (of_nats + of_log_z) - jnp.where(_is_target(logits, targets), of_nats, 0)
    return gradient.astype(logits.dtype), None


predict.defvjp(_predict_forward, _predict_backward)


def map_logits(
    model: nn.Module,
    params: Any,
    features: jax.Array,
    fn: Callable[[jax.Array, Any], Any],
    arrays: Any,
    chunk: int | None,
) -> Any:
    """Apply a function to the logits, `chunk` positions of each row at a time.

    With `chunk`, the logits that exist at a time are [b, chunk, v]. The backward pass computes them again. If rows are divided over the
    mesh axis `sequence`, each chunk has positions from the part of every device, so that no position moves between devices.

    Args:
        model: A model with the method `logits`.
        params: Parameters of the model.
        features: [b, t, d], from the method `features` of the model.
        fn: Maps logits [b, c, v] and `arrays` of the same positions [b, c, ...] to a tree of arrays [b, c, ...]. It must treat each
            position independently.
        arrays: Tree of arrays [b, t, ...].
        chunk: Number of positions; None: all positions at once, and the logits are kept for the backward pass.

    Returns:
        The results of `fn` for all t positions.

    Raises:
        PlamoError: `chunk` does not divide t, or is not a multiple of the mesh axis `sequence`.
    """

    def apply(x: jax.Array, arrays: Any) -> Any:
        return fn(model.apply({"params": params}, x, method="logits"), arrays)

    if chunk is None:
        return apply(features, arrays)
    b, t = features.shape[:2]
    parts = _sequence_parts(model)
    if t % chunk or chunk % parts:
        raise PlamoError(
            f"loss_chunk={chunk} is not allowed: it must divide the {t} positions of a row and be a multiple of sequence={parts}"
        )

    def cut(array: jax.Array) -> jax.Array:
        # From [b, t, ...] to [t / chunk, b, chunk, ...].
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
    """Return the number of parts into which the mesh of the model divides a row."""
    return 1 if model.mesh is None else model.mesh.shape[SEQUENCE]


def largest_chunk(model: nn.Module, length: int, limit: int) -> int:
    """Return the largest chunk up to about `limit` positions that `map_logits` allows for rows of `length` positions."""
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
    """Predict the targets of a batch.

    Args:
        model: A model with the methods `features` and `logits`.
        params: Parameters of the model.
        batch: Arrays [b, t].
        chunk: See `map_logits`.
        embedding_noise: [b, t, d], added to the embedded tokens.

    Raises:
        PlamoError: `chunk` is not allowed, as in `map_logits`.
    """
    inputs = (batch["tokens"], batch["segment_ids"], batch["positions"])
    features, _ = model.apply({"params": params}, *inputs, embedding_noise=embedding_noise, method="features")
    return map_logits(model, params, features, predict, batch["targets"], chunk)


def prediction_sums(
    prediction: Prediction, targets: jax.Array, weights: jax.Array, byte_lengths: jax.Array
) -> dict[str, jax.Array]:
    """Return scalar float32 sums over the targets of non-zero weight: nats, tokens, bytes and correct predictions.

    Args:
        targets: [b, t] int32.
        weights: [b, t]. A weight other than 0 counts the position once.
        byte_lengths: [v] int32, UTF-8 bytes of each token.
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
    """Return the weighted next-token cross-entropy with z-loss, in float32.

    The z-loss is z_loss · log(Z)², where Z is the softmax normalizer. It keeps logits from drifting (PaLM, arXiv:2204.02311, section 5).

    Args:
        weights: [b, t] float32.
        z_loss: Coefficient of the z-loss.

    Returns:
        The mean loss (a scalar, 0 if all weights are 0), and the weighted sum of log(Z)².
    """
    z = jnp.sum(weights * jnp.square(prediction.log_z))
    total = jnp.sum(weights * prediction.nats) + z_loss * z
    return total / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny), z
