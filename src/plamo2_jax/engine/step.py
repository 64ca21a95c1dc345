"""The compiled functions of generation: read a piece of the prompts, and continue all rows by several tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from plamo2_jax.engine.sampling import SamplingConfig, sample
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache


class DecodeState(struct.PyTreeNode):
    """Rows being generated."""

    cache: Cache
    """What the model has read: everything before `token`."""
    token: Int[Array, " b"]
    """The last token of each row, not read yet."""
    alive: Bool[Array, " b"]
    """Rows that have not ended; the others are fed padding."""
    seen: Bool[Array, "b v"] | None
    """Tokens of prompt and text, where the sampling asks for them."""
    keys: Key[Array, " b"]
    step: Int[Array, ""]
    """Tokens generated so far."""


class Vocabulary(struct.PyTreeNode):
    """Which ids may be drawn and which end a row."""

    usable: Bool[Array, " v"]
    stop: Bool[Array, " v"]
    min_new_tokens: Int[Array, ""]
    """Stop ids are not drawn before so many tokens."""


@functools.partial(jax.jit, static_argnames=("model", "batch_size", "max_length"))
def empty_cache(model: Plamo2, batch_size: int, max_length: int) -> Cache:
    """`model.init_cache`, every array in memory of its own, as donation wants it."""
    return model.init_cache(batch_size, max_length)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
    model: Plamo2, params: dict, cache: Cache, tokens: Int[Array, "b t"], segment_ids: Int[Array, "b t"]
) -> Cache:
    """The cache after a piece of the prompts; its memory is reused. Logits are not made."""
    return model.apply({"params": params}, tokens, segment_ids, cache=cache, method="features")[1]


@jax.jit
def unstack(cache: Cache) -> Cache:
    """`Cache.unstack`, every array in memory of its own, as donation wants it."""
    return cache.unstack()


@functools.partial(jax.jit, static_argnames=("model", "sampling", "capacity"), donate_argnames="state")
def decode(
    model: Plamo2,
    params: dict,
    state: DecodeState,
    vocabulary: Vocabulary,
    count: Int[Array, ""],
    *,
    sampling: SamplingConfig,
    capacity: int,
) -> tuple[DecodeState, Int[Array, "c b"], Float[Array, "c b"]]:
    """Up to `count` tokens a row, fewer once no row is alive.

    `count` is not static: any number up to `capacity` runs by one compilation.

    Returns:
        The state after them (the old one's memory is reused), token ids (-1 where a row had ended) and their log-probabilities
        among the tokens that could be drawn.
    """
    b = state.token.shape[0]
    tokens = jnp.full((capacity, b), -1, jnp.int32)
    logprobs = jnp.zeros((capacity, b), jnp.float32)

    def running(carry):
        i, state, *_ = carry
        return (i < count) & jnp.any(state.alive)

    def step(carry):
        i, state, tokens, logprobs = carry
        alive = state.alive
        logits, cache = model.apply(
            {"params": params}, state.token[:, None], alive[:, None].astype(jnp.int32), cache=state.cache
        )
        drawable = vocabulary.usable & ~(vocabulary.stop & (state.step < vocabulary.min_new_tokens))
        logits = jnp.where(drawable, logits[:, 0].astype(jnp.float32), -jnp.inf)
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
        token, logprob = sample(logits, keys, sampling, state.seen)
        seen = state.seen
        if seen is not None:
            seen = seen.at[jnp.arange(b), token].set(True)
        state = state.replace(
            cache=cache, token=token, alive=alive & ~vocabulary.stop[token], seen=seen, step=state.step + 1
        )
        return i + 1, state, tokens.at[i].set(jnp.where(alive, token, -1)), logprobs.at[i].set(logprob)

    _, state, tokens, logprobs = jax.lax.while_loop(running, step, (jnp.int32(0), state, tokens, logprobs))
    return state, tokens, logprobs
