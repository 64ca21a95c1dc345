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
from plamo2_jax.engine.shardings import place_cache, place_whole
from plamo2_jax.engine.speculation import Lookup, SpeculationConfig, propose
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache

MAX_TOP_LOGPROBS = 20
"""Maximum number of most likely tokens reported for each generated token, as in OpenAI's API."""


class RowSettings(struct.PyTreeNode):
    """The settings of requests: with the axis s in a `DecodeState`, without it for a single request."""

    sampling: RowSampling
    key: UInt32[Array, "s 3"]
    """Seed, checksum of the prompt and index of the sample. The random key is derived from them."""
    max_new_tokens: Int[Array, " s"]
    min_new_tokens: Int[Array, " s"]
    """Number of tokens before which no stop id is drawn."""
    stop: Bool[Array, "s v"]
    """Token ids that end the row."""
    top_logprobs: Int[Array, " s"]
    """Number of most likely tokens to report, 0 to MAX_TOP_LOGPROBS."""
    biased: Bool[Array, " s"]
    """Whether any entry of `bias` is not 0."""
    bias: Float[Array, "s v"]
    """Values added to the logits before all other steps."""


class Burst(struct.PyTreeNode):
    """The result of one call of `decode`: up to c tokens for each of s slots."""

    tokens: Int[Array, "c s"]
    """Token ids of each row in order; -1 after the last one."""
    logprobs: Float[Array, "c s"]
    """Log-probabilities of the tokens in nats, among the tokens that could be drawn, before temperature, filters and penalties."""
    top_tokens: Int[Array, "c s n"]
    """The most likely tokens, the most likely first, for rows that asked for them; undefined for other rows."""
    top_logprobs: Float[Array, "c s n"]
    filled: Int[Array, " s"]
    """Number of tokens of each row."""
    drafted: Int[Array, " s"]
    """Number of draft tokens that were read; `kept` is how many of them were kept."""
    kept: Int[Array, " s"]


class DecodeState(struct.PyTreeNode):
    """The state of a fixed number of slots. A slot has one row or is free. No leaf is shared by slots."""

    cache: Cache
    """The cache of all tokens before `token`."""
    token: Int[Array, " s"]
    """The last token of each row, which the model has not read yet."""
    alive: Bool[Array, " s"]
    """Mask of the rows that have not ended. Other rows read padding, which does not change their state."""
    step: Int[Array, " s"]
    """Number of tokens generated so far."""
    counts: Int[Array, "s v"]
    """Counts of generated tokens, with a flag for prompt tokens, as in `sampling.penalize`."""
    settings: RowSettings
    lookup: Lookup


@functools.partial(jax.jit, static_argnames=("model", "batch_size", "max_length"))
def empty_cache(model: Plamo2, batch_size: int, max_length: int) -> Cache:
    """Return `model.init_cache` with a separate buffer for each array, because donation does not allow shared buffers."""
    return place_cache(model.mesh, model.init_cache(batch_size, max_length))


@functools.partial(jax.jit, static_argnames=("model", "slots", "max_length", "history"))
def empty_state(model: Plamo2, slots: int, max_length: int, history: int = 0) -> DecodeState:
    """Return a state with only free slots. `history` is the length of `Lookup.history`."""
    v = model.config.vocab_size

    def zeros(dtype, *shape):
        return jnp.zeros((slots, *shape), dtype)

    sampling = RowSampling(**{name: zeros(jnp.float32) for name in RowSampling.__dataclass_fields__})
    settings = RowSettings(
        # A free slot must not have a penalty: one row with a penalty makes `sample` compute penalties for all rows.
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
    lookup = Lookup(zeros(jnp.int32, history), *(zeros(jnp.int32) for _ in range(3)))
    return DecodeState(cache, zeros(jnp.int32), zeros(bool), zeros(jnp.int32), zeros(jnp.int32, v), settings, lookup)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
    model: Plamo2, params: dict, cache: Cache, tokens: Int[Array, "b t"], segment_ids: Int[Array, "b t"]
) -> Cache:
    """Return the cache after a piece of prompts, in the memory of the old cache. Logits are not computed."""
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
    history: Int[Array, " l"],
    length: Int[Array, ""],
) -> DecodeState:
    """Put a prefilled row into a slot. Every leaf of the slot is overwritten.

    Args:
        state: the decode state; its memory is reused.
        cache: row 0 is inserted; its length must equal the length of the state's cache.
        slot: number of the slot.
        token: the last token of the prompt, which is not in the cache.
        counts: PROMPT for tokens of the prompt, 0 for others.
        settings: settings of the row.
        history: tokens of the prompt, padded to the length of `Lookup.history`; without speculation, l is 0.
        length: number of tokens of the prompt.
    """
    row = jax.tree.map(lambda leaf: leaf[0], cache)
    zero = jnp.int32(0)
    lookup = Lookup(history, length, zero, zero)
    one = DecodeState(row, token, jnp.bool_(True), zero, counts, settings, lookup)
    return jax.tree.map(lambda leaf, new: leaf.at[slot].set(new), state, one)


@functools.partial(jax.jit, donate_argnames="state")
def release(state: DecodeState, ended: Bool[Array, " s"]) -> DecodeState:
    """End the given rows and free their slots."""
    return state.replace(alive=state.alive & ~ended)


def _keys(key: UInt32[Array, "s 3"], step: Int[Array, " s"]) -> Key[Array, " s"]:
    """Return a random key for the next token of each row. It depends on the request and the step, not on the slot or other rows.

    Without the checksum of the prompt, all prompts of a batch would use the same random numbers and tend to the same tokens.
    """

    def of_row(key, step):
        # The algorithm is fixed: others may give a row different numbers in another batch.
        made = jax.random.key(key[0], impl="threefry2x32")
        for data in (key[1], key[2], step):
            made = jax.random.fold_in(made, data)
        return made

    return jax.vmap(of_row)(key, step)


def _adjusted(
    logits: Float[Array, "s v"],
    state: DecodeState,
    active: Bool[Array, " s"],
    usable: Bool[Array, " v"],
    allowed: UInt32[Array, "s w"],
    constrained: Bool[Array, " s"],
) -> Float[Array, "s v"]:
    """Apply bias, constraints, unusable ids and `min_new_tokens`. A step that no active row needs is skipped."""
    settings, v = state.settings, logits.shape[1]

    def where_any(rows: Bool[Array, " s"], change, logits):
        return jax.lax.cond(jnp.any(rows), change, lambda logits: logits, logits)

    def constrain(logits):
        bits = (jnp.repeat(allowed, 32, axis=1)[:, :v] >> (jnp.arange(v, dtype=jnp.uint32) % 32)) & 1
        return jnp.where(constrained[:, None] & (bits == 0), -jnp.inf, logits)

    early = active & (state.step < settings.min_new_tokens)
    logits = where_any(active & settings.biased, lambda logits: logits + settings.bias, logits)
    logits = where_any(active & constrained, constrain, logits)
    logits = jnp.where(usable, logits, -jnp.inf)
    return where_any(early, lambda logits: jnp.where(early[:, None] & settings.stop, -jnp.inf, logits), logits)


def _draw(
    model: Plamo2,
    state: DecodeState,
    burst: Burst,
    logits: Float[Array, "s v"],
    active: Bool[Array, " s"],
    *limits: Array,
) -> tuple[DecodeState, Burst]:
    """Draw the next token of each active row and record it. The cache does not change.

    On a mesh, each device draws for some rows, from all logits of a row: a token must not depend on how the vocabulary is divided.

    Args:
        limits: `usable`, `allowed` and `constrained` of `_adjusted`.
    """
    settings, rows = state.settings, jnp.arange(logits.shape[0])
    logits = model.spread_rows(logits)
    logits = _adjusted(logits, state, active, *limits)
    token, logprob = sample(logits, _keys(settings.key, state.step), settings.sampling, state.counts)
    top = jax.lax.cond(
        jnp.any(active & (settings.top_logprobs > 0)),
        _likeliest,
        lambda logits, _: (burst.top_tokens[0], burst.top_logprobs[0]),
        logits,
        jax.nn.logsumexp(logits, axis=-1, keepdims=True),
    )
    # Without this, XLA would divide the rows of the next step over all devices, also in the network.
    token, logprob, top = place_whole(model.mesh, (token, logprob, top))
    # Rows that are not active write out of bounds.
    place = jnp.where(active, burst.filled, burst.tokens.shape[0])

    def put(old: Array, new: Array) -> Array:
        return old.at[place, rows].set(new, mode="drop")

    burst = burst.replace(
        tokens=put(burst.tokens, token),
        logprobs=put(burst.logprobs, logprob),
        top_tokens=put(burst.top_tokens, top[0]),
        top_logprobs=put(burst.top_logprobs, top[1]),
        filled=burst.filled + active,
    )
    ended = settings.stop[rows, token] | (state.step + 1 >= settings.max_new_tokens)
    drawn = {
        "token": jnp.where(active, token, state.token),
        "alive": state.alive & ~(active & ended),
        "step": state.step + active,
        "counts": state.counts.at[rows, token].add(active.astype(jnp.int32)),
        "lookup": state.lookup.append(token, active),
    }
    return state.replace(**place_whole(model.mesh, drawn)), burst


def _likeliest(
    logits: Float[Array, "s v"], normalizer: Float[Array, "s 1"]
) -> tuple[Int[Array, "s n"], Float[Array, "s n"]]:
    """Return the most likely tokens and their log-probabilities, computed in the same way as in `sample`."""
    n = min(MAX_TOP_LOGPROBS, logits.shape[1])
    values, tokens = jax.lax.top_k(logits, n)
    values -= normalizer
    missing = ((0, 0), (0, MAX_TOP_LOGPROBS - n))
    return jnp.pad(tokens, missing), jnp.pad(values, missing, constant_values=-jnp.inf)


@functools.partial(jax.jit, static_argnames=("model", "capacity", "speculation"), donate_argnames="state")
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
    speculation: SpeculationConfig | None = None,
) -> tuple[DecodeState, Burst]:
    """Generate about `count` tokens for each row. Stop earlier when all rows have ended.

    Args:
        state: the decode state; its memory is reused.
        usable: mask of the ids that may be drawn.
        allowed: ids that constrained rows may draw in the first step; id i is bit i % 32 of word i // 32.
        constrained: mask of the rows that `allowed` applies to. If any row is constrained, `count` must be 1.
        count: number of tokens, at most `capacity`. One compiled program serves all values. Speculation may exceed it in the last step.
        until_free: return as soon as a row ends, so another request can use its slot.
        capacity: maximum number of tokens of a row.
        speculation: settings of prompt lookup; None: one token per step.
    """
    slots = state.token.shape[0]
    width = 1 if speculation is None else 1 + speculation.drafts
    limits = usable, allowed, constrained
    burst = Burst(
        jnp.full((capacity, slots), -1, jnp.int32),
        jnp.zeros((capacity, slots), jnp.float32),
        jnp.zeros((capacity, slots, MAX_TOP_LOGPROBS), jnp.int32),
        jnp.zeros((capacity, slots, MAX_TOP_LOGPROBS), jnp.float32),
        *(jnp.zeros(slots, jnp.int32) for _ in range(3)),
    )
    begun = state.alive

    def running(state, burst):
        filled = jnp.max(burst.filled)
        freed = until_free & jnp.any(begun & ~state.alive)
        return (filled < count) & (filled + width <= capacity) & jnp.any(state.alive) & ~freed

    def logits_of(features: Float[Array, "s t d"]) -> Float[Array, "s t v"]:
        return model.apply({"params": params}, features, method="decoding_logits").astype(jnp.float32)

    def plain(state, burst, *_):
        # As in `_draw`, the network must not divide these rows.
        token, alive = place_whole(model.mesh, (state.token, state.alive))
        features, cache = model.apply(
            {"params": params},
            token[:, None],
            alive[:, None].astype(jnp.int32),
            cache=state.cache,
            method="features",
        )
        logits = logits_of(features)[:, 0]
        return _draw(model, state.replace(cache=place_cache(model.mesh, cache)), burst, logits, alive, *limits)

    def speculative(state, burst, drafts, counts):
        begun, places = state.alive, jnp.arange(width)
        inputs = jnp.concatenate([state.token[:, None], drafts], axis=1)
        read = begun[:, None] & (places <= counts[:, None])
        features, commit = model.apply(
            {"params": params}, inputs, read.astype(jnp.int32), cache=state.cache, method="features_deferred"
        )
        logits = model.gather_channels(logits_of(features))

        def draw(carry):
            place, state, burst, active, kept = carry
            state, burst = _draw(model, state, burst, logits[:, place], active, *limits)
            # The next logits are of use where the draft is what was drawn.
            draft = jnp.take(drafts, jnp.minimum(place, width - 2), axis=1)
            active &= state.alive & (place < counts) & (draft == state.token)
            return place + 1, state, burst, active, kept + active

        start = jnp.int32(0), state, burst, begun, jnp.zeros(slots, jnp.int32)
        _, state, burst, _, kept = jax.lax.while_loop(lambda carry: jnp.any(carry[3]), draw, start)
        cache = commit((begun[:, None] & (places <= kept[:, None])).astype(jnp.int32))
        burst = burst.replace(drafted=burst.drafted + counts, kept=burst.kept + kept)
        lookup = state.lookup.judged(counts, kept, speculation.max_pause)
        return state.replace(cache=place_cache(model.mesh, cache), lookup=lookup), burst

    if speculation is None:
        return jax.lax.while_loop(lambda carry: running(*carry), lambda carry: plain(*carry), (state, burst))

    def with_drafts(state, burst):
        drafts, counts = propose(state.lookup, speculation)
        # The last token of a row is never an input.
        left = jnp.maximum(state.settings.max_new_tokens - state.step - 1, 0)
        possible = (jnp.sum(state.alive) <= speculation.max_rows) & ~jnp.any(state.alive & constrained)
        return state, burst, drafts, jnp.where(state.alive & possible, jnp.minimum(counts, left), 0)

    def steps(carry):
        # Two loops, because a conditional would copy the cache.
        for function, drafting in ((plain, False), (speculative, True)):
            carry = jax.lax.while_loop(
                lambda carry, drafting=drafting: running(*carry[:2]) & (jnp.any(carry[3] > 0) == drafting),
                lambda carry, function=function: with_drafts(*function(*carry)),
                carry,
            )
        return carry

    return jax.lax.while_loop(lambda carry: running(*carry[:2]), steps, with_drafts(state, burst))[:2]
