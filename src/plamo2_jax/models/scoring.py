"""Log-probabilities of continuations under a model in this process. A context is read once, in pieces, for all its continuations."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefill import pieces, power_of_two, read_prompts, take_rows
from plamo2_jax.engine.step import prefill
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache
from plamo2_jax.model.loss import largest_chunk, map_logits
from plamo2_jax.models.chat_model import Score
from plamo2_jax.models.shared_beginnings import Beginning
from plamo2_jax.tokenizer.tokenizer import Tokenizer

# Number of positions of a row whose logits are in memory together: 410 MB in float32 for 64 rows and a vocabulary of 100,000.
_CHUNK = 16
# Padded lengths of pieces below 128 tokens. They are closer together than powers of two, because padding takes most of the time of short
# pieces, and few, because each is compiled.
_LENGTHS = (1, 8, 16, 24, 32, 48, 64, 96)


@dataclasses.dataclass(frozen=True)
class _Row:
    """Tokens to read after a context. Continuations that differ in the last token only, such as letters, share a row."""

    context: int
    """Index of the context."""
    inputs: np.ndarray
    """The last token of the context, and the continuation without its last token [t] i32."""
    continuations: list[int] = dataclasses.field(default_factory=list)
    """Indices of the continuations, with as many tokens each."""


def split_texts(
    tokenizer: Tokenizer, context: str, continuations: Sequence[str], *, bos: bool = True
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Tokenize a context and its continuations as described in `ScoreRequest`.

    Returns:
        Token ids [t] of the context, and a list with the token ids of each continuation.
    """
    whole = [np.asarray(tokenizer.encode(context + text, bos=bos)) for text in continuations]
    prompt = np.asarray(tokenizer.encode(context, bos=bos))
    shared = min([len(prompt), *(_shared(prompt, ids) for ids in whole)])
    return prompt[:shared], [ids[shared:] for ids in whole]


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


def score_batch(
    generator: Generator,
    contexts: Sequence[np.ndarray],
    continuations: Sequence[Sequence[np.ndarray]],
    max_rows: int,
    beginning: Beginning | None = None,
) -> list[list[Score]]:
    """Score the continuations of several contexts. All contexts are read together, then continuations of similar length together.

    Args:
        generator: the model.
        contexts: token ids of b contexts, not empty.
        continuations: for each context, the token ids of its continuations. A continuation may be empty.
        max_rows: maximum number of continuations read together.
        beginning: the state after tokens with which all contexts begin, without the last token of any; None: read everything.

    Returns:
        For each context, the scores of its continuations.
    """
    model, params, b = generator.model, generator.params, power_of_two(len(contexts), 1)
    longest = max([1, *(len(ids) for row in continuations for ids in row)])
    # The last token of each context is read with the continuations, because its logits predict their first token.
    if beginning is None:
        cache = read_prompts(
            model,
            params,
            [context[:-1] for context in contexts],
            rows=b,
            max_length=power_of_two(max(map(len, contexts)) + longest, 64),
            prefill_size=generator.prefill_size,
        )
    else:
        cache = beginning.rows(generator, b)
        rest = [context[beginning.tokens : -1] for context in contexts]
        for tokens, segment_ids in pieces(rest, b, generator.prefill_size, _padded_length):
            cache = prefill(model, params, cache, tokens, segment_ids)
    rows = sorted(_rows(contexts, continuations), key=lambda row: len(row.inputs))
    batches = [rows[first : first + max_rows] for first in range(0, len(rows), max_rows)]
    pending = []
    for batch in batches:
        index = np.zeros(power_of_two(len(batch), 1), np.int32)
        index[: len(batch)] = [row.context for row in batch]
        whole = len(index) == b and (index[: len(contexts)] == np.arange(len(contexts))).all()
        own = cache if whole else take_rows(model, cache, index)
        pending.append(_score_rows(generator, own, batch, continuations, len(index)))
    scores = [[Score(0.0, True, ())] * len(row) for row in continuations]
    for batch, pieces_of_batch in zip(batches, jax.device_get(pending), strict=True):
        logprobs, greedy = (np.concatenate(arrays, axis=1) for arrays in zip(*pieces_of_batch, strict=True))
        for place, row in enumerate(batch):
            for k, j in enumerate(row.continuations):
                values = tuple(logprobs[place, : len(row.inputs), k].tolist())
                chosen = bool(greedy[place, : len(row.inputs), k].all())
                scores[row.context][j] = Score(math.fsum(values), chosen, values)
    return scores


def _rows(contexts: Sequence[np.ndarray], continuations: Sequence[Sequence[np.ndarray]]) -> list[_Row]:
    """Return the rows to read. An empty continuation has none."""
    found: dict[tuple[int, bytes], _Row] = {}
    for i, (context, some) in enumerate(zip(contexts, continuations, strict=True)):
        for j, ids in enumerate(some):
            if len(ids):
                inputs = np.concatenate([context[-1:], ids[:-1]]).astype(np.int32)
                found.setdefault((i, inputs.tobytes()), _Row(i, inputs)).continuations.append(j)
    return list(found.values())


def _padded_length(n: int) -> int:
    """Return the padded length of a piece of n tokens."""
    return _LENGTHS[bisect.bisect_left(_LENGTHS, n)] if n <= _LENGTHS[-1] else power_of_two(n, 1)


def _score_rows(
    generator: Generator, cache: Cache, rows: Sequence[_Row], continuations: Sequence[Sequence[np.ndarray]], b: int
) -> list[tuple[Float[Array, "b t k"], Bool[Array, "b t k"]]]:
    """Return for each piece the log-probabilities of the targets of all rows, and whether they are the most likely tokens.

    A long continuation is read in pieces of `prefill_size` tokens, like a prompt, so that its length does not need more memory.

    Args:
        generator: the model.
        cache: state after the context of each row.
        rows: the rows.
        continuations: for each context, the token ids of its continuations.
        b: number of rows of the cache. Rows after `rows` are padding.
    """
    v = generator.model.config.vocab_size
    drawable = np.arange(v) < (v if generator.tokenizer is None else generator.tokenizer.vocab_size)
    # A power of two, for fewer compilations. Missing targets are 0, and their scores are not used.
    most = power_of_two(max(len(row.continuations) for row in rows), 1)
    targets = np.zeros((b, max(len(row.inputs) for row in rows), most), np.int32)
    for place, row in enumerate(rows):
        for k, j in enumerate(row.continuations):
            targets[place, : len(row.inputs), k] = continuations[row.context][j]
    start, found = 0, []
    for tokens, segments in pieces([row.inputs for row in rows], b, generator.prefill_size, _padded_length):
        wanted = targets[:, start : start + tokens.shape[1]]
        wanted = np.pad(wanted, ((0, 0), (0, tokens.shape[1] - wanted.shape[1]), (0, 0)))
        count = min(generator.prefill_size, targets.shape[1] - start)
        start += count
        last = start == targets.shape[1]
        cache, *scores = _score(generator.model, generator.params, cache, tokens, wanted, segments, drawable, last=last)
        found.append(tuple(array[:, :count] for array in scores))
    return found


@functools.partial(jax.jit, static_argnames=("model", "last"))
def _score(
    model: Plamo2,
    params: dict,
    cache: Cache,
    inputs: Int[Array, "b t"],
    targets: Int[Array, "b t k"],
    segment_ids: Int[Array, "b t"],
    drawable: Bool[Array, " v"],
    *,
    last: bool,
) -> tuple[Cache | None, Float[Array, "b t k"], Bool[Array, "b t k"]]:
    """Return the cache after the inputs, the log-probability of each target, and whether it is the most likely token.

    After the last piece, the cache is None: not updating it saves time.
    """

    def of_targets(logits: Float[Array, "b c v"], targets: Int[Array, "b c k"]):
        logits = logits.astype(jnp.float32)
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        normalizer = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
        logprobs = jnp.take_along_axis(shifted, targets, axis=-1) - normalizer
        # Greedy decoding never generates the padding entries of the embedding. Of equal logits, it takes the first. This is an argmax,
        # which XLA does not vectorize on CPU.
        allowed = jnp.where(drawable, logits, -jnp.inf)
        ids = jnp.arange(allowed.shape[-1])
        first = jnp.min(jnp.where(allowed == jnp.max(allowed, axis=-1, keepdims=True), ids, ids.size), axis=-1)
        return logprobs, targets == first[..., None]

    features, cache = model.apply({"params": params}, inputs, segment_ids, cache=cache, method="features")
    chunk = largest_chunk(model, inputs.shape[1], _CHUNK)
    return None if last else cache, *map_logits(model, params, features, of_targets, targets, chunk)
