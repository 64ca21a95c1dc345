"""Bits per byte of a model on held-out text, a measure that allows comparing models with different vocabularies.

It is the sum of -log p over all targets, divided by ln 2 and by the number of UTF-8 bytes of the text. Every target is predicted once.
End-of-document targets are included; they have no bytes. There is no average over batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from plamo2_jax.errors import PlamoError
from plamo2_jax.model.loss import largest_chunk, predict_batch, prediction_sums

_MAX_LOGITS = 1 << 26
"""Default limit of the logits that a device holds at a time: 256 MiB in float32."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Sums over held-out text, and the metrics that follow from them."""

    nats: float
    """Sum of -log p over the targets."""
    tokens: int
    """Number of targets."""
    bytes: int
    """Number of UTF-8 bytes of the targets."""
    correct: int
    """Number of targets to which the model gave the highest probability."""

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / self.bytes

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinity if it overflows float64."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name, as they are written to files."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "loss": self.loss,
            "accuracy": self.correct / self.tokens,
            **dataclasses.asdict(self),
        }


def evaluation_step(
    model: nn.Module, byte_lengths: np.ndarray | jax.Array, chunk: int | None = None
) -> Callable[[Any, Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """Return a jitted function from parameters and a batch to the sums of `prediction_sums`.

    Args:
        model: A model with the methods `features` and `logits`.
        byte_lengths: [v] int32, UTF-8 bytes of each token.
        chunk: Positions of each row whose logits exist at a time; None: the number whose logits need 256 MiB per device.
    """

    @jax.jit
    def step(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        prediction = predict_batch(model, params, batch, chunk or _default_chunk(model, *batch["tokens"].shape))
        return prediction_sums(prediction, batch["targets"], batch["loss_weights"], jnp.asarray(byte_lengths))

    return step


def make_evaluator(
    model: nn.Module, byte_lengths: np.ndarray | jax.Array, chunk: int | None = None
) -> Callable[[Any, Iterable[Mapping[str, np.ndarray]]], HeldOut]:
    """Return a function `(params, batches) -> HeldOut`. It compiles once per shape of batch. For the arguments, see `evaluation_step`.

    Raises:
        PlamoError: The batches have no bytes to predict (raised by the returned function).
    """
    step = evaluation_step(model, byte_lengths, chunk)

    def evaluate(params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> HeldOut:
        pending = [step(params, batch) for batch in batches]
        # Batches are summed on the host in float64. A float32 sum would lose small terms.
        total = {name: sum(float(sums[name]) for sums in pending) for name in ("nats", "tokens", "bytes", "correct")}
        if not total["bytes"]:
            raise PlamoError("the held-out text is empty: at least one byte is needed. Give more text")
        return HeldOut(total["nats"], int(total["tokens"]), int(total["bytes"]), int(total["correct"]))

    return evaluate


def _default_chunk(model: nn.Module, b: int, t: int) -> int | None:
    """Return the number of positions of each of b rows whose logits stay below `_MAX_LOGITS` per device; None: all t."""
    devices = 1 if model.mesh is None else model.mesh.size
    positions = _MAX_LOGITS * devices // (model.config.vocab_size * b)
    return None if positions >= t else largest_chunk(model, t, positions)
