"""Choosing the next token: pure functions of logits.

Steps compose in the order that users of HF Transformers know: repetition penalty, temperature, top-k, top-p (of what top-k left,
renormalised), min-p, draw. A temperature of 0 takes the largest logit after the penalty: no filter removes it.

Every row draws with its own key, and noise belongs to the token id, not to its rank: a row's token depends neither on its
neighbours in the batch nor on how near-ties were ordered.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. The defaults draw from the model's own distribution.

    Raises:
        ValueError: a field is out of its range; the message names the field, its value and what is allowed.
    """

    temperature: float = 1.0
    """Divides the logits; 0: always the likeliest token."""
    top_k: int | None = None
    """Draw among the k likeliest tokens; of equals the lower ids. None: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability: the first that reaches it is still in."""
    min_p: float = 0.0
    """Draw among tokens at least this fraction as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and of the text so far less likely (Keskar et al., CTRL, arXiv:1909.05858)."""

    def __post_init__(self) -> None:
        top_k = self.top_k
        whole = isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 1
        positive = self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)
        self._require("temperature", self.temperature >= 0 and math.isfinite(self.temperature), "0 or positive")
        self._require("top_k", top_k is None or whole, "none or an integer of at least 1")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        self._require("repetition_penalty", positive, "positive")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"SamplingConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")


def penalize_repetition(logits: Float[Array, "b v"], seen: Bool[Array, "b v"], penalty: float) -> Float[Array, "b v"]:
    """Divide positive logits of seen tokens by `penalty`, multiply the others by it (arXiv:1909.05858)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_temperature(logits: Float[Array, "b v"], temperature: float) -> Float[Array, "b v"]:
    """Logits over a positive temperature, less the row's largest so that a tiny temperature cannot overflow."""
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature


def _ordered_bits(x: Float[Array, "b v"]) -> UInt32[Array, "b v"]:
    """Integers in the order of the floats."""
    x = jnp.where(x == 0, 0, x).astype(jnp.float32)  # -0.0 and 0.0 are one number and two bit patterns
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _keep_likeliest(logits: Float[Array, "b v"], weights: Float[Array, "b v"], target: float) -> Float[Array, "b v"]:
    """Keep the fewest tokens, by falling logit and of equals by rising id, whose weights reach `target`; -inf elsewhere.

    The last logit kept is found bit by bit in 32 sums over the vocabulary, which cost far less than sorting it.
    """
    bits = _ordered_bits(logits)

    def refine(i, threshold):
        candidate = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        reached = jnp.sum(jnp.where(bits >= candidate, weights, 0), axis=-1, keepdims=True) >= target
        return jnp.where(reached, candidate, threshold)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.zeros((logits.shape[0], 1), jnp.uint32))
    above, equal = bits > threshold, bits == threshold
    equal_weights = jnp.where(equal, weights, 0)
    before = jnp.sum(jnp.where(above, weights, 0), axis=-1, keepdims=True)
    before = before + jnp.cumsum(equal_weights, axis=-1) - equal_weights
    return jnp.where(above | (equal & (before < target)), logits, -jnp.inf)


def keep_top_k(logits: Float[Array, "b v"], k: int) -> Float[Array, "b v"]:
    """Logits of the k likeliest tokens, -inf elsewhere."""
    return _keep_likeliest(logits, jnp.ones_like(logits), k)


def keep_top_p(logits: Float[Array, "b v"], p: float) -> Float[Array, "b v"]:
    """Logits of the fewest likeliest tokens whose probability reaches p, -inf elsewhere (arXiv:1904.09751)."""
    return _keep_likeliest(logits, jax.nn.softmax(logits, axis=-1), p)


def keep_min_p(logits: Float[Array, "b v"], p: float) -> Float[Array, "b v"]:
    """Logits of tokens whose probability is at least p times the largest, -inf elsewhere (arXiv:2407.01082). p > 0."""
    return jnp.where(logits >= jnp.max(logits, axis=-1, keepdims=True) + math.log(p), logits, -jnp.inf)


def filter_logits(
    logits: Float[Array, "b v"], config: SamplingConfig, seen: Bool[Array, "b v"] | None = None
) -> Float[Array, "b v"]:
    """The logits that a draw at a positive temperature is made from: penalty, temperature, top-k, top-p, min-p."""
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise ValueError(
                f"a repetition_penalty={config.repetition_penalty} needs the mask of tokens seen [b, v]; it is None"
            )
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.temperature == 0:
        return logits
    logits = apply_temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = keep_min_p(logits, config.min_p)
    return logits


def _first_largest(x: Float[Array, "b v"]) -> Int[Array, " b"]:
    """`argmax`, in a quarter of its time on CPU, where its loop takes one element at a time and all that x is made of with it."""
    x = jax.lax.optimization_barrier(x)
    places = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[1] - 1)
    return jnp.min(places, axis=-1)


def sample(
    logits: Float[Array, "b v"],
    keys: Key[Array, " b"],
    config: SamplingConfig,
    seen: Bool[Array, "b v"] | None = None,
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """One token a row.

    Args:
        logits: float32; -inf forbids a token.
        keys: a random key a row, unused at temperature 0.
        config: static under jit.
        seen: tokens of the prompt and the text so far; needed with a repetition penalty.

    Returns:
        Token ids i32, and their log-probabilities in nats under `logits` as given, before any of the config's steps.

    Raises:
        ValueError: a repetition penalty without `seen`.
    """
    filtered = filter_logits(logits, config, seen)
    if config.temperature == 0:
        tokens = _first_largest(filtered)
    else:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, filtered.shape[1:], filtered.dtype))(keys)
        tokens = _first_largest(noise + filtered)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[:, None], axis=-1)
    return tokens, logprobs[:, 0]
