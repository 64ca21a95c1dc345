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


class RowSettings(struct.PyTreeNode):
    """What a request asks for; with the axis s in a `DecodeState`, without it for the request of one slot."""

    sampling: RowSampling
    key: UInt32[Array, "s 3"]
    """Seed, checksum of the prompt and number of the sample, of which the random key is made."""
    max_new_tokens: Int[Array, " s"]
    min_new_tokens: Int[Array, " s"]
    """Before so many tokens no stop id is drawn."""
    stop: Bool[Array, "s v"]
    """Token ids that end the row."""


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


@functools.partial(jax.jit, static_argnames=("model", "capacity"), donate_argnames="state")
def decode(
    model: Plamo2,
    params: dict,
    state: DecodeState,
    usable: Bool[Array, " v"],
    count: Int[Array, ""],
    until_free: Bool[Array, ""],
    *,
    capacity: int,
) -> tuple[DecodeState, Int[Array, "c s"], Float[Array, "c s"]]:
    """Up to `count` tokens for each row, fewer once no row is alive.

    Args:
        state: its memory is reused.
        usable: ids that may be drawn.
        count: at most `capacity`; any number runs by one compilation.
        until_free: return as soon as a row ends, so that another request can have its slot.

    Returns:
        The state after them, token ids (-1 where a row had ended or that many steps were not made) and their log-probabilities in nats
        among the tokens that could be drawn.
    """
    slots = state.token.shape[0]
    tokens = jnp.full((capacity, slots), -1, jnp.int32)
    logprobs = jnp.zeros((capacity, slots), jnp.float32)
    begun = state.alive

    def running(carry):
        i, state, *_ = carry
        return (i < count) & jnp.any(state.alive) & ~(until_free & jnp.any(begun & ~state.alive))

    def step(carry):
        i, state, tokens, logprobs = carry
        alive, settings = state.alive, state.settings
        logits, cache = model.apply(
            {"params": params}, state.token[:, None], alive[:, None].astype(jnp.int32), cache=state.cache
        )
        # Whole rows on each device: what is sampled from them must not depend on how the vocabulary is divided.
        logits = model.gather_channels(logits)[:, 0].astype(jnp.float32)
        logits = jnp.where(usable, logits, -jnp.inf)
        early = alive & (state.step < settings.min_new_tokens)
        logits = jax.lax.cond(
            jnp.any(early),
            lambda logits: jnp.where(early[:, None] & settings.stop, -jnp.inf, logits),
            lambda logits: logits,
            logits,
        )
        token, logprob = sample(logits, _keys(settings.key, state.step), settings.sampling, state.counts)
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
        return i + 1, state, tokens.at[i].set(jnp.where(alive, token, -1)), logprobs.at[i].set(logprob)

    _, state, tokens, logprobs = jax.lax.while_loop(running, step, (jnp.int32(0), state, tokens, logprobs))
    return state, tokens, logprobs
