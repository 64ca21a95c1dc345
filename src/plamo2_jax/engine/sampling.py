"""Choosing the next token: pure functions of logits.

Steps compose in the order that users of HF Transformers and vLLM know: penalties, temperature, top-k, top-p (of what top-k left,
renormalised), min-p, draw. A temperature of 0 takes the largest logit after the penalties: no filter removes it.

A draw turns one uniform number into a token by the sums of the probabilities, in the order of ids. Top-p needs neither a sort nor a
threshold: a token outside is drawn again (rejection sampling, as in https://flashinfer.ai/2025/03/10/sampling.html), which costs one sum
over the vocabulary where it is inside at once. Every row draws with its own key: its token does not depend on its neighbours in the batch.

Settings are arrays with one entry for each row, so no setting is compiled in. A step that no row asks for is skipped by `lax.cond`.
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

from plamo2_jax.validation import require

# No vocabulary is larger.
_NO_TOP_K = np.iinfo(np.int32).max


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

    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that were generated at least once, as in OpenAI's API."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that it was generated, as in OpenAI's API."""

    def __post_init__(self) -> None:
        top_k = self.top_k
        whole = isinstance(top_k, int) and not isinstance(top_k, bool) and 1 <= top_k <= _NO_TOP_K
        positive = self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)
        require(self, "temperature", self.temperature >= 0 and math.isfinite(self.temperature), "0 or positive")
        require(self, "top_k", top_k is None or whole, "none or an integer of at least 1")
        require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        require(self, "min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        require(self, "repetition_penalty", positive, "positive")
        for name in ("presence_penalty", "frequency_penalty"):
            require(self, name, math.isfinite(getattr(self, name)), "finite")


class RowSampling(struct.PyTreeNode):
    """The fields of a `SamplingConfig` for each row; a `top_k` of the largest int32 keeps all tokens."""

    temperature: Float[Array, " b"]
    top_k: Int[Array, " b"]
    top_p: Float[Array, " b"]
    min_p: Float[Array, " b"]
    repetition_penalty: Float[Array, " b"]
    presence_penalty: Float[Array, " b"]
    frequency_penalty: Float[Array, " b"]

    @classmethod
    def of(cls, config: SamplingConfig) -> RowSampling:
        """Return one row's settings as NumPy scalars."""
        values = dataclasses.asdict(config)
        top_k = np.int32(values.pop("top_k") or _NO_TOP_K)
        return cls(top_k=top_k, **{name: np.float32(value) for name, value in values.items()})


PROMPT = 1 << 30
"""Added to a token's count where the prompt has it."""


def penalize(logits: Float[Array, "b v"], counts: Int[Array, "b v"], sampling: RowSampling) -> Float[Array, "b v"]:
    """Apply the three penalties.

    Repetition divides positive logits of tokens in prompt or text by the penalty and multiplies the others (arXiv:1909.05858).

    Args:
        counts: how often each token was generated, plus PROMPT where it is in the prompt.
    """
    repetition, presence, frequency = (
        getattr(sampling, f"{name}_penalty")[:, None] for name in ("repetition", "presence", "frequency")
    )
    generated = counts & (PROMPT - 1)
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(counts > 0, repeated, logits)
    return logits - presence * (generated > 0) - frequency * generated


def apply_temperature(logits: Float[Array, "b v"], temperature: Float[Array, " b"]) -> Float[Array, "b v"]:
    """Logits over a positive temperature, less the row's largest so that a tiny temperature cannot overflow."""
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature[:, None]


def _ordered_bits(x: Float[Array, "b v"]) -> UInt32[Array, "b v"]:
    """Integers in the order of the floats."""
    x = jnp.where(x == 0, 0, x).astype(jnp.float32)  # -0.0 and 0.0 are one number and two bit patterns
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def keep_top_k(logits: Float[Array, "b v"], k: Int[Array, " b"]) -> Float[Array, "b v"]:
    """Logits of the k likeliest tokens of each row, of equals those of the lower ids; -inf elsewhere.

    The last logit kept is found bit by bit in 32 counts over the vocabulary, which cost far less than sorting it.
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
    """Logits of tokens whose probability is at least p times the largest, -inf elsewhere (arXiv:2407.01082). p = 0 keeps all."""
    return jnp.where(logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p)[:, None], logits, -jnp.inf)


def in_top_p(logits: Float[Array, "b v"], tokens: Int[Array, " b"], p: Float[Array, " b"]) -> Bool[Array, " b"]:
    """Whether a token of each row is among the fewest likeliest whose probability reaches p (arXiv:1904.09751).

    So it is where those before it, likelier or of the same logit and a lower id, do not reach p without it.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    before = jnp.sum(jnp.where(_before(logits, tokens), weights, 0), axis=-1)
    # Also of logits that are no numbers, which would be drawn again for ever. Of p = 1 rounding must not leave any out.
    return ~(before >= p * jnp.sum(weights, axis=-1)) | (p >= 1)


def _before(logits: Float[Array, "b v"], tokens: Int[Array, " b"]) -> Bool[Array, "b v"]:
    """Tokens that are likelier than that of the row, or as likely and of a lower id."""
    logit = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    lower = jnp.arange(logits.shape[1]) < tokens[:, None]
    return (logits > logit) | ((logits == logit) & lower)


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
    logits: Float[Array, "b v"], possible: Float[Array, "b v"], keys: Key[Array, " b"], p: Float[Array, " b"]
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


def _draw_rows(
    logits: Float[Array, "b v"], keys: Key[Array, " b"], sampling: RowSampling, warm: Bool[Array, " b"]
) -> Int[Array, " b"]:
    """Draw a token for each row that is `warm`; the others' have no meaning."""
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
        keys: a random key for each row, unused at temperature 0.
        sampling: each row's settings.
        counts: as in `penalize`.

    Returns:
        Token ids i32, and their log-probabilities in nats under `logits` as given, before any of the settings' steps.
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
