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
    """Token ids of each row, from the first place on; -1 elsewhere."""
    logprobs: Float[Array, "c s"]
    """Log-probabilities of the tokens in nats, among the tokens that could be drawn, before temperature, filters and penalties."""
    top_tokens: Int[Array, "c s n"]
    """The likeliest tokens of rows that asked for them, in order; without meaning in other rows."""
    top_logprobs: Float[Array, "c s n"]
    filled: Int[Array, " s"]
    """Number of tokens of each row."""
    drafted: Int[Array, " s"]
    """Number of draft tokens that were read, and how many of them were kept."""
    kept: Int[Array, " s"]


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
    lookup: Lookup


@functools.partial(jax.jit, static_argnames=("model", "batch_size", "max_length"))
def empty_cache(model: Plamo2, batch_size: int, max_length: int) -> Cache:
    """`model.init_cache`, every array in memory of its own, as donation needs it."""
    return place_cache(model.mesh, model.init_cache(batch_size, max_length))


@functools.partial(jax.jit, static_argnames=("model", "slots", "max_length", "history"))
def empty_state(model: Plamo2, slots: int, max_length: int, history: int = 0) -> DecodeState:
    """Return a state whose slots are all free; `history` is the length of `Lookup.history`."""
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
    lookup = Lookup(zeros(jnp.int32, history), *(zeros(jnp.int32) for _ in range(3)))
    return DecodeState(cache, zeros(jnp.int32), zeros(bool), zeros(jnp.int32), zeros(jnp.int32, v), settings, lookup)


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
    history: Int[Array, " l"],
    length: Int[Array, ""],
) -> DecodeState:
    """Put a prefilled row into a slot. Every leaf of the slot is overwritten.

    Args:
        state: its memory is reused.
        cache: its first row is inserted; as long as the state's.
        slot: number of the slot.
        token: the prompt's last token, which the cache does not hold.
        counts: PROMPT for the tokens of the prompt, else 0.
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
    active: Bool[Array, " s"],
    usable: Bool[Array, " v"],
    allowed: UInt32[Array, "s w"],
    constrained: Bool[Array, " s"],
) -> Float[Array, "s v"]:
    """Apply bias, constraints, unusable ids and `min_new_tokens`. A change that no active row asks for is skipped."""
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
    """Draw the next token of each active row and record it. The cache stays as it is.

    On a mesh, each device draws for some rows, from all logits of a row: a token must not depend on how the vocabulary is divided.

    Args:
        limits: the last three arguments of `_adjusted`.
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
    """Return the likeliest tokens and their log-probabilities, computed as `sample` computes a token's."""
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
    """Generate about `count` tokens for each row, fewer once no row is alive.

    Args:
        state: its memory is reused.
        usable: ids that may be drawn.
        allowed: ids that constrained rows may draw at the first step, id i as bit i % 32 of word i // 32.
        constrained: rows that `allowed` applies to; with any, `count` must be 1.
        count: at most `capacity`; any number runs by one compilation. With speculation the last step may pass it.
        until_free: return as soon as a row ends, so that another request can have its slot.
        capacity: largest number of tokens of a row.
        speculation: None: one token per step.
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

    def running(carry):
        state, burst = carry
        filled = jnp.max(burst.filled)
        freed = until_free & jnp.any(begun & ~state.alive)
        return (filled < count) & (filled + width <= capacity) & jnp.any(state.alive) & ~freed

    def logits_of(features: Float[Array, "s t d"]) -> Float[Array, "s t v"]:
        return model.apply({"params": params}, features, method="logits").astype(jnp.float32)

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

    def step(carry):
        state, burst = carry
        if speculation is None:
            return plain(state, burst)
        drafts, counts = propose(state.lookup, speculation)
        # The last token of a row is never an input.
        left = jnp.maximum(state.settings.max_new_tokens - state.step - 1, 0)
        possible = (jnp.sum(state.alive) <= speculation.max_rows) & ~jnp.any(state.alive & constrained)
        counts = jnp.where(state.alive & possible, jnp.minimum(counts, left), 0)
        return jax.lax.cond(jnp.any(counts > 0), speculative, plain, state, burst, drafts, counts)

    return jax.lax.while_loop(running, step, (state, burst))
