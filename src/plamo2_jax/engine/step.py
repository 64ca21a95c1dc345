"""The compiled functions of the engine: read a piece of prompts, put a row into a slot, continue all slots by several tokens.

Everything that differs between requests is data, so a new prompt, sampling setting, seed, stop id or length limit compiles nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from plamo2_jax.engine.sampling import RowSampling, sample
from plamo2_jax.engine.shardings import place_cache
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache

MAX_TOP_LOGPROBS = 20
"""Largest number of likeliest tokens that are reported for each generated token, as in OpenAI's API."""


class RowSettings(struct.PyTreeNode):
    """The settings of a request; with the axis s in a `DecodeState`, without it for the request of one slot."""

    sampling: RowSampling
    key: UInt32[Array, "s 3"]
    """Seed, checksum of the prompt and number of the sample, of which the random key is made."""
    max_new_tokens: Int[Array, " s"]
    min_new_tokens: Int[Array, " s"]
    """No stop id is drawn before this number of tokens."""
    stop: Bool[Array, "s v"]
    """Token ids that end the row."""
    top_logprobs: Int[Array, " s"]
    """Number of likeliest tokens to report; 0 to MAX_TOP_LOGPROBS."""
    biased: Bool[Array, " s"]
    """Whether any entry of `bias` is not 0."""
    bias: Float[Array, "s v"]
    """Added to the logits before all other steps."""


class Burst(struct.PyTreeNode):
    """What one call of `decode` generated: c steps of s slots."""

    tokens: Int[Array, "c s"]
    """Token ids; -1 where a row had ended or a step was not made."""
    logprobs: Float[Array, "c s"]
    """Log-probabilities of the tokens in nats, among the tokens that could be drawn, before temperature, filters and penalties."""
    top_tokens: Int[Array, "c s n"]
    """The likeliest tokens of rows that asked for them, in order; without meaning in other rows."""
    top_logprobs: Float[Array, "c s n"]


class DecodeState(struct.PyTreeNode):
    """A fixed number of slots, each with a row that is generated, or free. No leaf is shared by slots."""

    cache: Cache
    """What the model has read: everything before `token`."""
    token: Int[Array, " s"]
    """The last token of each row, not read yet."""
    alive: Bool[Array, " s"]
    """Rows that have not ended; the others read padding, which changes no state."""
    step: Int[Array, " s"]
    """Tokens generated so far."""
    counts: Int[Array, "s v"]
    """Tokens of prompt and text, as in `sampling.penalize`."""
    settings: RowSettings


@functools.partial(jax.jit, static_argnames=("model", "batch_size", "max_length"))
def empty_cache(model: Plamo2, batch_size: int, max_length: int) -> Cache:
    """`model.init_cache`, every array in memory of its own, as donation needs it."""
    return place_cache(model.mesh, model.init_cache(batch_size, max_length))


@functools.partial(jax.jit, static_argnames=("model", "slots", "max_length"))
def empty_state(model: Plamo2, slots: int, max_length: int) -> DecodeState:
    """Slots that are all free."""
    v = model.config.vocab_size

    def zeros(dtype, *shape):
        return jnp.zeros((slots, *shape), dtype)

    sampling = RowSampling(**{name: zeros(jnp.float32) for name in RowSampling.__dataclass_fields__})
    settings = RowSettings(
        # A free slot asks for no penalty, which would be computed for all rows.
        sampling.replace(top_k=zeros(jnp.int32), repetition_penalty=zeros(jnp.float32) + 1),
        zeros(jnp.uint32, 3),
        zeros(jnp.int32),
        zeros(jnp.int32),
        zeros(bool, v),
        zeros(jnp.int32),
        zeros(bool),
        zeros(jnp.float32, v),
    )
    cache = place_cache(model.mesh, model.init_cache(slots, max_length))
    return DecodeState(cache, zeros(jnp.int32), zeros(bool), zeros(jnp.int32), zeros(jnp.int32, v), settings)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
    model: Plamo2, params: dict, cache: Cache, tokens: Int[Array, "b t"], segment_ids: Int[Array, "b t"]
) -> Cache:
    """The cache after a piece of prompts; the old one's memory is reused. Logits are not computed."""
    cache = model.apply({"params": params}, tokens, segment_ids, cache=cache, method="features")[1]
    return place_cache(model.mesh, cache)


@functools.partial(jax.jit, donate_argnames="state")
def insert(
    state: DecodeState,
    cache: Cache,
    slot: Int[Array, ""],
    token: Int[Array, ""],
    counts: Int[Array, " v"],
    settings: RowSettings,
) -> DecodeState:
    """Put a prefilled row into a slot. Every leaf of the slot is overwritten.

    Args:
        state: its memory is reused.
        cache: its first row is inserted; as long as the state's.
        slot: number of the slot.
        token: the prompt's last token, which the cache does not hold.
        counts: PROMPT for the tokens of the prompt, else 0.
        settings: of one row.
    """
    one = DecodeState(jax.tree.map(lambda leaf: leaf[0], cache), token, jnp.bool_(True), jnp.int32(0), counts, settings)
    return jax.tree.map(lambda leaf, new: leaf.at[slot].set(new), state, one)


@functools.partial(jax.jit, donate_argnames="state")
def release(state: DecodeState, ended: Bool[Array, " s"]) -> DecodeState:
    """End rows; their slots are free."""
    return state.replace(alive=state.alive & ~ended)


def _keys(key: UInt32[Array, "s 3"], step: Int[Array, " s"]) -> Key[Array, " s"]:
    """A random key for each row's next token, made of the request and the step: not of the slot, nor of other rows.

    Without the prompt's checksum, rows of one batch would draw with the same noise and lean to the same tokens.
    """

    def of_row(key, step):
        # The generator is named: others do not promise a row the same numbers in every batch.
        made = jax.random.key(key[0], impl="threefry2x32")
        for data in (key[1], key[2], step):
            made = jax.random.fold_in(made, data)
        return made

    return jax.vmap(of_row)(key, step)


def _adjusted(
    logits: Float[Array, "s v"],
    state: DecodeState,
    usable: Bool[Array, " v"],
    allowed: UInt32[Array, "s w"],
    constrained: Bool[Array, " s"],
) -> Float[Array, "s v"]:
    """Apply bias, constraints, unusable ids and `min_new_tokens`. A step that no row asks for is skipped."""
    alive, settings, v = state.alive, state.settings, logits.shape[1]

    def where_any(rows: Bool[Array, " s"], change, logits):
        return jax.lax.cond(jnp.any(rows), change, lambda logits: logits, logits)

    def constrain(logits):
        bits = (jnp.repeat(allowed, 32, axis=1)[:, :v] >> (jnp.arange(v, dtype=jnp.uint32) % 32)) & 1
        return jnp.where(constrained[:, None] & (bits == 0), -jnp.inf, logits)

    early = alive & (state.step < settings.min_new_tokens)
    logits = where_any(alive & settings.biased, lambda logits: logits + settings.bias, logits)
    logits = where_any(alive & constrained, constrain, logits)
    logits = jnp.where(usable, logits, -jnp.inf)
    return where_any(early, lambda logits: jnp.where(early[:, None] & settings.stop, -jnp.inf, logits), logits)


@functools.partial(jax.jit, static_argnames=("model", "capacity"), donate_argnames="state")
def decode(
    model: Plamo2,
    params: dict,
    state: DecodeState,
    usable: Bool[Array, " v"],
    allowed: UInt32[Array, "s w"],
    constrained: Bool[Array, " s"],
    count: Int[Array, ""],
    until_free: Bool[Array, ""],
    *,
    capacity: int,
) -> tuple[DecodeState, Burst]:
    """Generate up to `count` tokens for each row, fewer once no row is alive.

    Args:
        state: its memory is reused.
        usable: ids that may be drawn.
        allowed: ids that constrained rows may draw at the first step, id i as bit i % 32 of word i // 32.
        constrained: rows that `allowed` applies to; with any, `count` must be 1.
        count: at most `capacity`; any number runs by one compilation.
        until_free: return as soon as a row ends, so that another request can have its slot.
    """
    slots = state.token.shape[0]
    burst = Burst(
        jnp.full((capacity, slots), -1, jnp.int32),
        jnp.zeros((capacity, slots), jnp.float32),
        jnp.zeros((capacity, slots, MAX_TOP_LOGPROBS), jnp.int32),
        jnp.zeros((capacity, slots, MAX_TOP_LOGPROBS), jnp.float32),
    )
    begun = state.alive

    def running(carry):
        i, state, _ = carry
        return (i < count) & jnp.any(state.alive) & ~(until_free & jnp.any(begun & ~state.alive))

    def step(carry):
        i, state, burst = carry
        alive, settings = state.alive, state.settings
        logits, cache = model.apply(
            {"params": params}, state.token[:, None], alive[:, None].astype(jnp.int32), cache=state.cache
        )
        # Whole rows on each device: what is sampled from them must not depend on how the vocabulary is divided.
        logits = model.gather_channels(logits)[:, 0].astype(jnp.float32)
        logits = _adjusted(logits, state, usable, allowed, constrained)
        token, logprob = sample(logits, _keys(settings.key, state.step), settings.sampling, state.counts)
        top_tokens, top_logprobs = jax.lax.cond(
            jnp.any(alive & (settings.top_logprobs > 0)),
            _likeliest,
            lambda logits: (burst.top_tokens[i], burst.top_logprobs[i]),
            logits,
        )
        rows = jnp.arange(slots)
        ended = settings.stop[rows, token] | (state.step + 1 >= settings.max_new_tokens)
        state = DecodeState(
            place_cache(model.mesh, cache),
            token,
            alive & ~ended,
            state.step + 1,
            state.counts.at[rows, token].add(alive.astype(jnp.int32)),
            settings,
        )
        burst = Burst(
            burst.tokens.at[i].set(jnp.where(alive, token, -1)),
            burst.logprobs.at[i].set(logprob),
            burst.top_tokens.at[i].set(top_tokens),
            burst.top_logprobs.at[i].set(top_logprobs),
        )
        return i + 1, state, burst

    _, state, burst = jax.lax.while_loop(running, step, (jnp.int32(0), state, burst))
    return state, burst


def _likeliest(logits: Float[Array, "s v"]) -> tuple[Int[Array, "s n"], Float[Array, "s n"]]:
    """Return the likeliest tokens and their log-probabilities, computed as `sample` computes a token's."""
    n = min(MAX_TOP_LOGPROBS, logits.shape[1])
    values, tokens = jax.lax.top_k(logits, n)
    values -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    missing = ((0, 0), (0, MAX_TOP_LOGPROBS - n))
    return jnp.pad(tokens, missing), jnp.pad(values, missing, constant_values=-jnp.inf)
