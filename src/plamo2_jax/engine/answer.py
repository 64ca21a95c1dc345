"""A model that answers the questions of retrieval probes: greedy continuations, and likelihoods of given ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefill import power_of_two, read_prompts, repeat_rows
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class ModelAnswerer:
    """See `eval.retrieval.Answerer`. A prompt is read once, in pieces, whatever the number of its candidates.

    Args:
        model: the network.
        params: its parameters.
        tokenizer: says which ids mean something, so that no other is drawn; None: all.
        prefill_size: tokens of a row read at once; a power of two.
    """

    def __init__(self, model: Plamo2, params: dict, tokenizer: Tokenizer | None = None, prefill_size: int = 512):
        self._generator = Generator(model, params, tokenizer, prefill_size=prefill_size)
        self._model, self._params, self._size = self._generator.model, self._generator.params, prefill_size

    def complete(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> list[np.ndarray]:
        """Greedy continuations, ids i32."""
        completions = self._generator.generate(
            list(prompts),
            sampling=SamplingConfig(temperature=0.0),
            stop=StopConfig(max_new_tokens=max_new_tokens),
        )
        return [np.array(completion.token_ids, np.int32) for completion in completions]

    def log_likelihoods(
        self, prompts: Sequence[np.ndarray], candidates: Sequence[Sequence[np.ndarray]]
    ) -> list[np.ndarray]:
        """For each prompt [c] float32, the log-probability of each of its c candidates behind it."""
        count, b = max(map(len, candidates)), len(prompts)
        longest = max(len(ids) for row in candidates for ids in row)
        # The last token of each prompt is read with the candidates: it predicts their first.
        cache = read_prompts(
            self._model,
            self._params,
            [prompt[:-1] for prompt in prompts],
            rows=b,
            max_length=power_of_two(max(map(len, prompts)) + longest, 64),
            prefill_size=self._size,
        )
        inputs, targets, segments = np.zeros((3, b * count, power_of_two(longest, 16)), np.int32)
        for i, (prompt, row) in enumerate(zip(prompts, candidates, strict=True)):
            for j, ids in enumerate(row):
                place = i * count + j
                inputs[place, : len(ids)] = [prompt[-1], *ids[:-1]]
                targets[place, : len(ids)] = ids
                segments[place, : len(ids)] = 1
        scores = _score(self._model, self._params, repeat_rows(cache, count), inputs, targets, segments)
        return [row[: len(own)] for row, own in zip(np.asarray(scores).reshape(b, count), candidates, strict=True)]


@functools.partial(jax.jit, static_argnames="model")
def _score(
    model: Plamo2,
    params: dict,
    cache: Cache,
    inputs: Int[Array, "b t"],
    targets: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"],
) -> Float[Array, " b"]:
    """Sum of the targets' log-probabilities where segment_ids is not 0."""
    logits, _ = model.apply({"params": params}, inputs, segment_ids, cache=cache)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(segment_ids != 0, logprobs, 0), axis=-1)
