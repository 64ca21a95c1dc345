"""Choosing the next token: pure functions of logits.

Steps compose in the order that users of HF Transformers know: repetition penalty, temperature, top-k, top-p (of what top-k left,
renormalised), min-p, draw. A temperature of 0 takes the largest logit after the penalty: no filter removes it.

A draw turns one uniform number into a token by the sums of the probabilities, in the order of ids. Top-p needs neither a sort nor a
threshold: a token outside is drawn again (rejection sampling, as in https://flashinfer.ai/2025/03/10/sampling.html), which costs one sum
over the vocabulary where it is inside at once. Every row draws with its own key: its token does not depend on its neighbours in the batch.
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


def keep_top_k(logits: Float[Array, "b v"], k: int) -> Float[Array, "b v"]:
    """Logits of the k likeliest tokens, of equals those of the lower ids; -inf elsewhere.

    The last logit kept is found bit by bit in 32 counts over the vocabulary, which cost far less than sorting it.
    """
    bits = _ordered_bits(logits)

    def refine(i, threshold):
        candidate = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(bits >= candidate, axis=-1, keepdims=True) >= k, candidate, threshold)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.zeros((logits.shape[0], 1), jnp.uint32))
    above, equal = bits > threshold, bits == threshold
    left = k - jnp.sum(above, axis=-1, keepdims=True)
    return jnp.where(above | (equal & (jnp.cumsum(equal, axis=-1) <= left)), logits, -jnp.inf)


def keep_min_p(logits: Float[Array, "b v"], p: float) -> Float[Array, "b v"]:
    """Logits of tokens whose probability is at least p times the largest, -inf elsewhere (arXiv:2407.01082). p > 0."""
    return jnp.where(logits >= jnp.max(logits, axis=-1, keepdims=True) + math.log(p), logits, -jnp.inf)


def in_top_p(logits: Float[Array, "b v"], tokens: Int[Array, " b"], p: float) -> Bool[Array, " b"]:
    """Whether a token of each row is among the fewest likeliest whose probability reaches p (arXiv:1904.09751).

    So it is where those before it, likelier or of the same logit and a lower id, do not reach p without it.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    before = jnp.sum(jnp.where(_before(logits, tokens), weights, 0), axis=-1)
    # Also of logits that are no numbers, which would be drawn again for ever.
    return ~(before >= p * jnp.sum(weights, axis=-1))


def _before(logits: Float[Array, "b v"], tokens: Int[Array, " b"]) -> Bool[Array, "b v"]:
    """Tokens that are likelier than that of the row, or as likely and of a lower id."""
    logit = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    lower = jnp.arange(logits.shape[1]) < tokens[:, None]
    return (logits > logit) | ((logits == logit) & lower)


def adjust_logits(
    logits: Float[Array, "b v"], config: SamplingConfig, seen: Bool[Array, "b v"] | None = None
) -> Float[Array, "b v"]:
    """Penalty, temperature and top-k: the logits that top-p and min-p look at. At temperature 0 the penalty alone."""
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise ValueError(
                f"a repetition_penalty={config.repetition_penalty} needs the mask of tokens seen [b, v]; it is None"
            )
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.temperature == 0:
        return logits
    logits = apply_temperature(logits, config.temperature)
    return logits if config.top_k is None else keep_top_k(logits, config.top_k)


def draw(logits: Float[Array, "b v"], uniform: Float[Array, " b"]) -> Int[Array, " b"]:
    """The token of each row at which the sum of the probabilities, by rising id, passes a number in [0, 1).

    Sums are made of sums of blocks: of a whole row's running sum only one block's is needed.
    """
    b, v = logits.shape
    size = math.isqrt(v - 1) + 1
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, size * size - v))).reshape(b, size, size)

    def pick(weights: Float[Array, "b n"], number: Float[Array, " b"]) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
        """The first place at which the running sum passes the number, and the sum before it.

        Running sums are made in parallel and rounded each for itself, so they may fall, and rise where nothing is added: only places of a
        weight above 0 count, and where none passes it is the last of these.
        """
        sums, places = jnp.cumsum(weights, axis=-1), jnp.arange(weights.shape[1])
        there = weights > 0
        last = jnp.max(jnp.where(there, places, 0), axis=-1, keepdims=True)
        place = jnp.min(jnp.where(there & (sums > number[:, None]), places, last), axis=-1)
        return place, jnp.take_along_axis(sums - weights, place[:, None], axis=1)[:, 0]

    blocks = jnp.sum(weights, axis=-1)
    number = uniform * jnp.sum(blocks, axis=-1)
    block, before = pick(blocks, number)
    place, _ = pick(jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0], number - before)
    return (block * size + place).astype(jnp.int32)


def _draw_in_top_p(
    logits: Float[Array, "b v"], possible: Float[Array, "b v"], keys: Key[Array, " b"], p: float
) -> Int[Array, " b"]:
    """Draw from `possible`, some of the logits and the likeliest among them, until each row's token is in their top-p."""

    def again(carry):
        attempt, possible, tokens, done = carry
        # A token outside the top-p leaves only those before it, all of the top-p among them.
        possible = jnp.where((attempt == 0) | done[:, None] | _before(logits, tokens), possible, -jnp.inf)
        found = draw(possible, _uniform(keys, attempt))
        tokens = jnp.where(done, tokens, found)
        return attempt + 1, possible, tokens, in_top_p(logits, tokens, p)

    start = (jnp.int32(0), possible, jnp.zeros(len(logits), jnp.int32), jnp.zeros(len(logits), bool))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), again, start)[2]


def _uniform(keys: Key[Array, " b"], attempt: Int[Array, ""]) -> Float[Array, " b"]:
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, attempt), ()))(keys)


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
    adjusted = adjust_logits(logits, config, seen)
    if config.temperature == 0:
        tokens = _first_largest(adjusted)
    else:
        possible = keep_min_p(adjusted, config.min_p) if config.min_p > 0 else adjusted
        if config.top_p < 1:
            tokens = _draw_in_top_p(adjusted, possible, keys, config.top_p)
        else:
            tokens = draw(possible, _uniform(keys, jnp.int32(0)))
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[:, None], axis=-1)
    return tokens, logprobs[:, 0]
