"""Log-probabilities of answers in packed rows: sums over segments, without the logits of a whole row in memory.

Both answers of a pair are in the same row, as two independent segments: segment 2k − 1 is prompt and chosen answer of pair k of the row,
and segment 2k is prompt and rejected answer. A single answer is a pair with one segment missing. `loss_weights` is 1 at the tokens of an
answer and 0 at the tokens of its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plamo2_jax.align.dpo import Pairs
from plamo2_jax.model.loss import predict_batch


def token_log_probs(
    model: nn.Module, params: Any, batch: Mapping[str, Array], chunk: int | None = None
) -> Float[Array, "b t"]:
    """Return log p of every target with non-zero weight, and 0 elsewhere, float32.

    Args:
        model: a model with the methods `features` and `logits`.
        params: its parameters.
        batch: tokens, targets, segment_ids, positions, loss_weights [b, t].
        chunk: positions of each row whose logits exist at a time; None: all.
    """
    nats = predict_batch(model, params, batch, chunk).nats
    return jnp.where(batch["loss_weights"] != 0, -nats, 0.0)


def segment_sums(
    values: Float[Array, "b t"], segment_ids: Int[Array, "b t"], segments: int
) -> Float[Array, "b {segments}"]:
    """Return the sums of `values` over the segments 1 to `segments` of each row; 0 for a missing segment. Id 0 is padding."""
    # XLA fuses comparison and sum, so no array [b, t, segments] exists, and a sharded row needs one all-reduce.
    is_in = segment_ids[..., None] == jnp.arange(1, segments + 1)
    return jnp.sum(jnp.where(is_in, values[..., None], 0), axis=1)


def gather_pairs(
    policy: Float[Array, "b t"], reference: Float[Array, "b t"] | None, batch: Mapping[str, Array], max_pairs: int
) -> Pairs:
    """Return the pairs and single answers of a batch, [b × max_pairs], from log-probabilities of tokens.

    Args:
        policy: result of `token_log_probs` for the policy.
        reference: the same for the reference; None: zeros.
        batch: segment_ids and loss_weights [b, t], as described at the top of this module.
        max_pairs: largest number of pairs and single answers in a row.
    """

    def by_answer(values: Array) -> tuple[Array, Array]:
        sums = segment_sums(values, batch["segment_ids"], 2 * max_pairs)
        return sums[:, 0::2].reshape(-1), sums[:, 1::2].reshape(-1)

    lengths = by_answer((batch["loss_weights"] != 0).astype(jnp.float32))
    reference_sums = by_answer(jnp.zeros_like(policy) if reference is None else jax.lax.stop_gradient(reference))
    return Pairs(*by_answer(policy), *reference_sums, *lengths)
