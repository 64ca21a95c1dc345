"""A float model on held-out rows, and how far another model is from it."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
from trials import LANGUAGES

from plamo2_jax.convert.load import load_model
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches
from plamo2_jax.engine.weights import unstack
from plamo2_jax.model import Plamo2
from plamo2_jax.model.quantized import is_quantized
from plamo2_jax.quantize.divergence import features
from plamo2_jax.quantize.layers import effective

LENGTH, ROWS = 512, 4
"""Tokens of a row, and rows of a batch."""


class Reference:
    """A float model on held-out rows."""

    def __init__(self, path: Path, data: Path, batches: int):
        self.loaded = load_model(path)
        self.model = Plamo2(self.loaded.config, scan_layers=False)
        self.params = unstack(Plamo2(self.loaded.config), self.loaded.params)
        lengths = jnp.asarray(self.loaded.tokenizer.padded_byte_lengths(self.loaded.config.vocab_size))
        self.batches = {}
        for language in LANGUAGES:
            folder = data / language / "heldout"
            rows = heldout_batches(DataConfig((MixtureItem(folder),), LENGTH, ROWS), folder, self.loaded.tokenizer)
            self.batches[language] = list(itertools.islice(rows, batches))

        @jax.jit
        def compare(reference, params, batch):
            expected, found = (
                jax.nn.log_softmax(
                    self.model.apply({"params": each}, features(self.model, each, batch), method="logits")
                )
                for each in (reference, params)
            )
            weights, targets = batch["loss_weights"], batch["targets"]
            own = jnp.take_along_axis(found, targets[..., None], axis=-1)[..., 0]
            divergence = jnp.sum(jnp.exp(expected) * (expected - found), axis=-1)
            same = jnp.argmax(expected, axis=-1) == jnp.argmax(found, axis=-1)
            return {
                "nats": -jnp.sum(own * weights),
                "kl": jnp.sum(divergence * weights),
                "same": jnp.sum(same * weights),
                "tokens": jnp.sum(weights),
                "bytes": jnp.sum(jnp.where(weights > 0, lengths[targets], 0)),
            }

        self._compare = compare

    def measure(self, params: dict) -> dict:
        """Bits per byte, KL divergence from the float model in nats per token, and the share of equal greedy tokens."""
        params = jax.tree.map(effective, params, is_leaf=is_quantized)
        result = {}
        for language, batches in self.batches.items():
            sums: dict[str, float] = {}
            for batch in batches:
                for name, value in self._compare(self.params, params, batch).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            result[language] = {
                "bits_per_byte": sums["nats"] / sums["bytes"] / float(jnp.log(2.0)),
                "kl": sums["kl"] / sums["tokens"],
                "greedy_agreement": sums["same"] / sums["tokens"],
                "tokens": sums["tokens"],
            }
        return result
