"""Log-probabilities of answers: a sum for each segment of packed rows, with no logits of a whole row in memory.

Both answers of a pair lie in one row, as two segments that do not see each other: segment 2k − 1 is the chosen answer of the row's
pair k, prompt and all, and segment 2k the rejected one. A single answer is a pair that lacks the other. `loss_weights` is 1 at the
tokens of an answer and 0 at those of its prompt.
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
    """log p of every target whose weight is not 0, and 0 elsewhere, in float32.

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
    """Sums over segments 1 to `segments` of each row; 0 for one that is not there.

    Args:
        values: to be summed.
        segment_ids: 0 for padding.
        segments: how many a row has at most; those beyond are lost.
    """
    # A comparison and a sum, which fuse: no array [b, t, segments] comes to be, and a row in shards needs one all-reduce.
    is_in = segment_ids[..., None] == jnp.arange(1, segments + 1)
    return jnp.sum(jnp.where(is_in, values[..., None], 0), axis=1)


def gather_pairs(
    policy: Float[Array, "b t"], reference: Float[Array, "b t"] | None, batch: Mapping[str, Array], max_pairs: int
) -> Pairs:
    """The pairs and single answers of a batch, [b × max_pairs], from log-probabilities of tokens; what is missing has length 0.

    Args:
        policy: from `token_log_probs`.
        reference: the same of the reference; None: zeros.
        batch: segment_ids as the module's description tells, and loss_weights [b, t].
        max_pairs: pairs and single answers of a row at most.
    """

    def by_answer(values: Array) -> tuple[Array, Array]:
        sums = segment_sums(values, batch["segment_ids"], 2 * max_pairs)
        return sums[:, 0::2].reshape(-1), sums[:, 1::2].reshape(-1)

    lengths = by_answer((batch["loss_weights"] != 0).astype(jnp.float32))
    reference_sums = by_answer(jnp.zeros_like(policy) if reference is None else jax.lax.stop_gradient(reference))
    return Pairs(*by_answer(policy), *reference_sums, *lengths)
