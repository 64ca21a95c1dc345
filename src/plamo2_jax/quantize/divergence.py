"""KL divergence between the next-token distributions of two models, in blocks of tokens: logits of a whole row are never held."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plamo2_jax.data.batch import Batch
from plamo2_jax.model import Plamo2

_BLOCK = 128


def features(model: Plamo2, params: Any, batch: Batch) -> Float[Array, "b t d"]:
    """Return the features from which the logits of a batch are computed."""
    arrays = (batch["tokens"], batch["segment_ids"], batch["positions"])
    return model.apply({"params": params}, *arrays, method="features")[0]


def kl_divergence(
    model: Plamo2,
    reference: Any,
    reference_features: Float[Array, "b t d"],
    params: Any,
    found: Float[Array, "b t d"],
    batch: Batch,
) -> Float[Array, ""]:
    """Return KL(reference || model) in nats, averaged over the tokens of a batch that are not padding.

    Args:
        model: The network.
        reference: Parameters of the reference; only its head is used.
        reference_features: Features of the reference.
        params: Parameters of the model; only its head is used.
        found: Features of the model.
        batch: The batch.
    """
    b, t = found.shape[:2]
    block = min(_BLOCK, t)
    blocks = -(-t // block)

    def divide(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, blocks * block - t), *((0, 0),) * (x.ndim - 2)))
        return padded.reshape(b, blocks, block, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def of_block(arrays: tuple) -> Float[Array, ""]:
        expected, x, real = arrays
        p = jax.nn.log_softmax(model.apply({"params": reference}, expected, method="logits"))
        q = jax.nn.log_softmax(model.apply({"params": params}, x, method="logits"))
        return jnp.sum(jnp.where(real, jnp.sum(jnp.exp(p) * (p - q), axis=-1), 0))

    real = batch["segment_ids"] != 0
    sums = jax.lax.map(of_block, (divide(reference_features), divide(found), divide(real)))
    return jnp.sum(sums) / jnp.maximum(jnp.sum(real), 1)
