"""Log-probabilities of continuations under a model in this process. A context is read once, in pieces, for all its continuations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefill import pieces, power_of_two, read_prompts, repeat_rows
from plamo2_jax.engine.step import prefill
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache
from plamo2_jax.model.loss import map_logits
from plamo2_jax.models.chat_model import Score
from plamo2_jax.models.shared_beginnings import Beginning
from plamo2_jax.tokenizer.tokenizer import Tokenizer

# Number of positions of a row whose logits are in memory together: 410 MB in float32 for 64 rows and a vocabulary of 100,000.
_CHUNK = 16


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
    """Score the continuations of several contexts in one batch.

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
        cache = beginning.rows(b)
        for tokens, segment_ids in pieces(
            [context[beginning.tokens : -1] for context in contexts], b, generator.prefill_size
        ):
            cache = prefill(model, params, cache, tokens, segment_ids)
    v = model.config.vocab_size
    drawable = jnp.arange(v) < (v if generator.tokenizer is None else generator.tokenizer.vocab_size)
    scores: list[list[Score]] = [[] for _ in contexts]
    most, step = max(map(len, continuations)), max(1, max_rows // b)
    for first in range(0, most, step):
        count = min(step, most - first)
        inputs, targets = ([np.zeros(0, np.int32)] * (b * count) for _ in range(2))
        for i, (context, row) in enumerate(zip(contexts, continuations, strict=True)):
            for j, ids in enumerate(row[first : first + count]):
                place = i * count + j
                inputs[place] = np.concatenate([context[-1:], ids[:-1]])[: len(ids)]
                targets[place] = ids
        logprobs, greedy = _score_rows(generator, repeat_rows(cache, count), inputs, targets, drawable)
        for i, row in enumerate(continuations):
            for j, ids in enumerate(row[first : first + count]):
                place = i * count + j
                values = tuple(logprobs[place, : len(ids)].tolist())
                scores[i].append(Score(math.fsum(values), bool(greedy[place, : len(ids)].all()), values))
    return scores


def _score_rows(
    generator: Generator,
    cache: Cache,
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    drawable: Bool[Array, " v"],
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities [b, t] of the targets of all rows, and whether they are the most likely tokens [b, t].

    A long continuation is read in pieces of `prefill_size` tokens, like a prompt, so that its length does not need more memory.
    """
    size, rows = generator.prefill_size, len(inputs)
    read = list(zip(pieces(inputs, rows, size), pieces(targets, rows, size), strict=True))
    found = []
    for i, ((tokens, segments), (wanted, _)) in enumerate(read):
        last = i + 1 == len(read)
        cache, *scores = _score(generator.model, generator.params, cache, tokens, wanted, segments, drawable, last=last)
        found.append(scores)
    if not found:  # All continuations are empty.
        return np.zeros((rows, 0), np.float32), np.zeros((rows, 0), bool)
    logprobs, greedy = (np.concatenate(arrays, axis=1) for arrays in zip(*jax.device_get(found), strict=True))
    return logprobs, greedy


@functools.partial(jax.jit, static_argnames=("model", "last"))
def _score(
    model: Plamo2,
    params: dict,
    cache: Cache,
    inputs: Int[Array, "b t"],
    targets: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"],
    drawable: Bool[Array, " v"],
    *,
    last: bool,
) -> tuple[Cache | None, Float[Array, "b t"], Bool[Array, "b t"]]:
    """Return the cache after the inputs, the log-probability of each target, and whether it is the most likely token.

    After the last piece, the cache is None: not updating it saves time.
    """

    def of_targets(logits: Float[Array, "b c v"], targets: Int[Array, "b c"]):
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[..., None], axis=-1)[..., 0]
        # Greedy decoding never generates the padding entries of the embedding.
        return logprobs, jnp.argmax(jnp.where(drawable, logits, -jnp.inf), axis=-1) == targets

    features, cache = model.apply({"params": params}, inputs, segment_ids, cache=cache, method="features")
    return None if last else cache, *map_logits(model, params, features, of_targets, targets, _CHUNK)
