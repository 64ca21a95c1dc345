"""Held-out bits per byte: what one pass over held-out text costs a model, a measure that vocabularies do not change.

The nats of all targets, end-of-document targets included (their text has no bytes), are summed and divided by ln 2 and by the UTF-8
bytes of the text. Every target is predicted once and no average over batches is taken.
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

_MOST_LOGITS = 1 << 26
"""Logits that a device holds at a time where no chunk is named: 256 MiB in float32."""


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


def evaluation_step(
    model: nn.Module, byte_lengths: np.ndarray | jax.Array, chunk: int | None = None
) -> Callable[[Any, Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """Make the compiled function that maps parameters and a batch to the sums of `prediction_sums`.

    Args:
        model: a model with the methods `features` and `logits`.
        byte_lengths: [v] int32, UTF-8 bytes each token stands for.
        chunk: positions of each row whose logits exist at a time; None: as many as come to 256 MiB on a device.
    """

    @jax.jit
    def step(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        prediction = predict_batch(model, params, batch, chunk or _default_chunk(model, *batch["tokens"].shape))
        return prediction_sums(prediction, batch["targets"], batch["loss_weights"], jnp.asarray(byte_lengths))

    return step


def make_evaluator(
    model: nn.Module, byte_lengths: np.ndarray | jax.Array, chunk: int | None = None
) -> Callable[[Any, Iterable[Mapping[str, np.ndarray]]], HeldOut]:
    """Make a function `(params, batches) -> HeldOut`, compiled once for each shape of batch; arguments as `evaluation_step`."""
    step = evaluation_step(model, byte_lengths, chunk)

    def evaluate(params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> HeldOut:
        pending = [step(params, batch) for batch in batches]
        # Batches are added in float64 on the host: float32 would drop small ones.
        total = {name: sum(float(sums[name]) for sums in pending) for name in ("nats", "tokens", "bytes", "correct")}
        if not total["bytes"]:
            raise PlamoError("the held-out text is empty: there is no byte to predict")
        return HeldOut(total["nats"], int(total["tokens"]), int(total["bytes"]), int(total["correct"]))

    return evaluate


def _default_chunk(model: nn.Module, b: int, t: int) -> int | None:
    """Positions of each of b rows whose logits come to `_MOST_LOGITS` on a device; None: all t."""
    devices = 1 if model.mesh is None else model.mesh.size
    positions = _MOST_LOGITS * devices // (model.config.vocab_size * b)
    return None if positions >= t else largest_chunk(model, t, positions)
