"""Sampling of the next token: pure functions of the logits.

The order of the steps is the same as in Hugging Face Transformers and vLLM: penalties, temperature, top-k, top-p (renormalised over the
tokens that top-k kept), min-p, draw. Temperature 0 takes the largest logit after the penalties, which no filter removes.

A draw inverts the cumulative distribution over token ids at one uniform random number. Top-p uses rejection sampling instead of a sort: a
token outside top-p is drawn again (https://flashinfer.ai/2025/03/10/sampling.html). If the first token is inside, this costs one sum over
the vocabulary. Every row has its own random key, so its token does not depend on the other rows of the batch.

The settings are arrays with one entry per row, so they are not compiled in. `lax.cond` skips a step that no row needs.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from plamo2_jax.validation import is_real, require

_MOST_PENALTY = 1e6
# Larger than any vocabulary.
_NO_TOP_K = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling. The defaults draw from the model's distribution.

    Raises:
        PlamoError: a field is out of range. The message has the field, its value and the allowed values.
    """

    temperature: float = 1.0
    """Divisor of the logits; 0: greedy decoding."""
    top_k: int | None = None
    """Draw from the k most likely tokens. Among equal logits, lower ids are kept. None: draw from all tokens."""
    top_p: float = 1.0
    """Draw from the smallest set of most likely tokens whose total probability is at least this value."""
    min_p: float = 0.0
    """Draw from the tokens whose probability is at least this fraction of the largest probability."""
    repetition_penalty: float = 1.0
    """Values above 1 make tokens of the prompt and of the generated text less likely (Keskar et al., CTRL, arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """Amount subtracted from the logits of tokens that were generated at least once, as in OpenAI's API."""
    frequency_penalty: float = 0.0
    """Amount subtracted from the logit of a token once for each time that it was generated, as in OpenAI's API."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "top_k":
                require(self, field.name, is_real(getattr(self, field.name)), "a number")
        top_k = self.top_k
        whole = isinstance(top_k, int) and not isinstance(top_k, bool) and 1 <= top_k <= _NO_TOP_K
        # Logits with these penalties are finite in float32.
        repetition = 1 / _MOST_PENALTY <= self.repetition_penalty <= _MOST_PENALTY
        require(self, "temperature", self.temperature >= 0 and math.isfinite(self.temperature), "0 or positive")
        require(self, "top_k", top_k is None or whole, "none or an integer of at least 1")
        require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        require(self, "min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        require(self, "repetition_penalty", repetition, "from 0.000001 to 1000000")
        for name in ("presence_penalty", "frequency_penalty"):
            require(self, name, abs(getattr(self, name)) <= _MOST_PENALTY, "from -1000000 to 1000000")


class RowSampling(struct.PyTreeNode):
    """The fields of a `SamplingConfig`, one value per row. The largest int32 as `top_k` keeps all tokens."""

    temperature: Float[Array, " b"]
    top_k: Int[Array, " b"]
    top_p: Float[Array, " b"]
    min_p: Float[Array, " b"]
    repetition_penalty: Float[Array, " b"]
    presence_penalty: Float[Array, " b"]
    frequency_penalty: Float[Array, " b"]

    @classmethod
    def of(cls, config: SamplingConfig) -> RowSampling:
        """Return the settings of one row as NumPy scalars."""
        values = dataclasses.asdict(config)
        top_k = np.int32(values.pop("top_k") or _NO_TOP_K)
        return cls(top_k=top_k, **{name: np.float32(value) for name, value in values.items()})


PROMPT = 1 << 30
"""Flag in a token's count: the prompt contains the token."""


def penalize(logits: Float[Array, "b v"], counts: Int[Array, "b v"], sampling: RowSampling) -> Float[Array, "b v"]:
    """Apply the three penalties.

    For tokens of the prompt or the generated text, the repetition penalty divides positive logits and multiplies others (arXiv:1909.05858).

    Args:
        counts: how often each token was generated, plus PROMPT if the prompt contains it.
    """
    repetition, presence, frequency = (
        getattr(sampling, f"{name}_penalty")[:, None] for name in ("repetition", "presence", "frequency")
    )
    generated = counts & (PROMPT - 1)
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(counts > 0, repeated, logits)
    return logits - presence * (generated > 0) - frequency * generated


def apply_temperature(logits: Float[Array, "b v"], temperature: Float[Array, " b"]) -> Float[Array, "b v"]:
    """Divide logits by a positive temperature. The row maximum is subtracted first, so a tiny temperature cannot overflow."""
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature[:, None]


def _ordered_bits(x: Float[Array, "b v"]) -> UInt32[Array, "b v"]:
    """Return integers that have the same order as the floats."""
    x = jnp.where(x == 0, 0, x).astype(jnp.float32)  # -0.0 equals 0.0 but has other bits
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def keep_top_k(logits: Float[Array, "b v"], k: Int[Array, " b"]) -> Float[Array, "b v"]:
    """Keep the logits of the k most likely tokens of each row and set the others to -inf. Among equal logits, lower ids are kept.

    A binary search finds the smallest kept logit in 32 passes over the vocabulary, one per bit. This costs far less than a sort.
    """
    bits, k = _ordered_bits(logits), k[:, None]

    def refine(i, threshold):
        candidate = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(bits >= candidate, axis=-1, keepdims=True) >= k, candidate, threshold)

    threshold = jax.lax.fori_loop(0, 32, refine, jnp.zeros((logits.shape[0], 1), jnp.uint32))
    above, equal = bits > threshold, bits == threshold
    left = k - jnp.sum(above, axis=-1, keepdims=True)
    return jnp.where(above | (equal & (jnp.cumsum(equal, axis=-1) <= left)), logits, -jnp.inf)


def keep_min_p(logits: Float[Array, "b v"], p: Float[Array, " b"]) -> Float[Array, "b v"]:
    """Set logits to -inf where the probability is below p times the largest one (arXiv:2407.01082). p = 0 keeps all."""
    return jnp.where(logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p)[:, None], logits, -jnp.inf)


def in_top_p(logits: Float[Array, "b v"], tokens: Int[Array, " b"], p: Float[Array, " b"]) -> Bool[Array, " b"]:
    """Return for one token of each row whether it is in the top-p set (arXiv:1904.09751).

    It is in the set if the total probability of the tokens before it (larger logit, or equal logit and lower id) is below p. The most
    likely token always is, also if p is too small for a float32.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    before = jnp.sum(jnp.where(_before(logits, tokens), weights, 0), axis=-1)
    # The negation also accepts NaN, which would otherwise be drawn again for ever. With p = 1, rounding must not exclude a token.
    return ~(before >= p * jnp.sum(weights, axis=-1)) | (before == 0) | (p >= 1)


def _before(logits: Float[Array, "b v"], tokens: Int[Array, " b"]) -> Bool[Array, "b v"]:
    """Mask the tokens with a larger logit than the given token, or with an equal logit and a lower id."""
    logit = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    lower = jnp.arange(logits.shape[1]) < tokens[:, None]
    return (logits > logit) | ((logits == logit) & lower)


def draw(logits: Float[Array, "b v"], uniform: Float[Array, " b"]) -> Int[Array, " b"]:
    """Draw a token for each row: the first id at which the cumulative probability exceeds `uniform`, a number in [0, 1).

    The vocabulary is split into blocks. The cumulative sum over blocks selects one block, so only this block needs a cumulative sum.
    """
    b, v = logits.shape
    size = math.isqrt(v - 1) + 1
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, size * size - v))).reshape(b, size, size)

    def pick(weights: Float[Array, "b n"], number: Float[Array, " b"]) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
        """Return the first index at which the cumulative sum exceeds the number, and the sum before it.

        A parallel cumulative sum is not monotonic: each entry has its own rounding error. So only indices with a positive weight
        count. If no sum exceeds the number, the last such index is returned.
        """
        sums, indices = jnp.cumsum(weights, axis=-1), jnp.arange(weights.shape[1])
        positive = weights > 0
        last = jnp.max(jnp.where(positive, indices, 0), axis=-1, keepdims=True)
        index = jnp.min(jnp.where(positive & (sums > number[:, None]), indices, last), axis=-1)
        return index, jnp.take_along_axis(sums - weights, index[:, None], axis=1)[:, 0]

    blocks = jnp.sum(weights, axis=-1)
    number = uniform * jnp.sum(blocks, axis=-1)
    block, before = pick(blocks, number)
    index, _ = pick(jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0], number - before)
    return (block * size + index).astype(jnp.int32)


def _draw_in_top_p(
    logits: Float[Array, "b v"], possible: Float[Array, "b v"], keys: Key[Array, " b"], p: Float[Array, " b"]
) -> Int[Array, " b"]:
    """Draw from the filtered logits `possible` until the token of each row is in the top-p set of `logits`."""

    def again(carry):
        attempt, possible, tokens, done = carry
        # If a token is outside the top-p set, the whole set is before it: later tokens need not be drawn again.
        possible = jnp.where((attempt == 0) | done[:, None] | _before(logits, tokens), possible, -jnp.inf)
        found = draw(possible, _uniform(keys, attempt))
        tokens = jnp.where(done, tokens, found)
        return attempt + 1, possible, tokens, in_top_p(logits, tokens, p)

    start = (jnp.int32(0), possible, jnp.zeros(len(logits), jnp.int32), jnp.zeros(len(logits), bool))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), again, start)[2]


def _uniform(keys: Key[Array, " b"], attempt: Int[Array, ""]) -> Float[Array, " b"]:
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, attempt), ()))(keys)


def _first_largest(x: Float[Array, "b v"]) -> Int[Array, " b"]:
    """Return the same as `argmax` in a quarter of its time on CPU, where XLA does not vectorize argmax and fuses x into its loop."""
    x = jax.lax.optimization_barrier(x)
    ids = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[1] - 1)
    return jnp.min(ids, axis=-1)


def _draw_rows(
    logits: Float[Array, "b v"], keys: Key[Array, " b"], sampling: RowSampling, warm: Bool[Array, " b"]
) -> Int[Array, " b"]:
    """Draw a token for each row with a positive temperature (`warm`). The other entries of the result are undefined."""
    logits = apply_temperature(logits, jnp.where(warm, sampling.temperature, 1))
    some = jnp.any(warm & (sampling.top_k < logits.shape[1]))
    logits = jax.lax.cond(some, keep_top_k, lambda logits, k: logits, logits, sampling.top_k)
    possible = keep_min_p(logits, sampling.min_p)
    top_p = jnp.where(warm, sampling.top_p, 1)
    return jax.lax.cond(
        jnp.any(top_p < 1),
        _draw_in_top_p,
        lambda logits, possible, keys, p: draw(possible, _uniform(keys, jnp.int32(0))),
        *(logits, possible, keys, top_p),
    )


@functools.partial(jax.named_call, name="sampling")
def sample(
    logits: Float[Array, "b v"], keys: Key[Array, " b"], sampling: RowSampling, counts: Int[Array, "b v"]
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """Choose one token for each row.

    Args:
        logits: float32; -inf forbids a token.
        keys: one random key per row, unused at temperature 0.
        sampling: settings of each row.
        counts: how often each token was generated, as in `penalize`.

    Returns:
        Token ids i32, and their log-probabilities in nats under the given `logits`, before penalties, temperature and filters.
    """
    changed = (sampling.repetition_penalty != 1) | (sampling.presence_penalty != 0) | (sampling.frequency_penalty != 0)
    adjusted = jax.lax.cond(jnp.any(changed), penalize, lambda logits, *_: logits, logits, counts, sampling)
    warm = sampling.temperature > 0
    tokens = _first_largest(adjusted)
    tokens = jax.lax.cond(
        jnp.any(warm),
        lambda: jnp.where(warm, _draw_rows(adjusted, keys, sampling, warm), tokens),
        lambda: tokens,
    )
    logprobs = jnp.take_along_axis(logits, tokens[:, None], axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return tokens, logprobs[:, 0]
