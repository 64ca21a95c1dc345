"""Log-probabilities of the prompt tokens and the most likely tokens at each position, computed in pieces to save memory."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from plamo2_jax.engine.prefill import SMALLEST_PIECE, cut_prompt, power_of_two
from plamo2_jax.engine.shardings import committed, place_cache
from plamo2_jax.engine.step import MAX_TOP_LOGPROBS, empty_cache
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import Cache

CHUNK = 64
"""Number of positions whose logits are in memory together: 26 MB in float32 for a vocabulary of 100,000."""


@dataclasses.dataclass(frozen=True)
class PromptScores:
    """Scores of a prompt of t tokens. The first token has no score, because no token comes before it."""

    logprobs: np.ndarray
    """Log-probability of each token after the first [t - 1] f32, in nats, at temperature 1 and without filters."""
    top_tokens: np.ndarray
    """The n most likely tokens at the same positions [t - 1, n] i32, the most likely first."""
    top_logprobs: np.ndarray
    """Log-probabilities of `top_tokens` [t - 1, n] f32. The prompt's own token has the same bits here and in `logprobs`."""


class PromptScorer:
    """Scores one prompt, piece by piece.

    Args:
        model: the network.
        params: its parameters.
        prompt: token ids [t] i32, not empty.
        rows: number of rows of the cache: the number of devices that the rows are sharded over.
        max_length: number of tokens that a row of the cache can hold.
        prefill_size: maximum number of tokens in one forward pass, a power of two.
        usable: token ids that may be reported as most likely [v] bool.
        top_logprobs: number of most likely tokens to report at each position.
    """

    def __init__(
        self,
        model: Plamo2,
        params: dict,
        prompt: np.ndarray,
        *,
        rows: int,
        max_length: int,
        prefill_size: int,
        usable: Bool[Array, " v"],
        top_logprobs: int,
    ):
        self._model, self._params, self._prompt, self._usable = model, params, prompt, usable
        self._rows, self._size, self._n = rows, prefill_size, top_logprobs
        self._ends = cut_prompt(len(prompt) - 1, prefill_size)
        self._cache = committed(empty_cache(model, rows, max_length))
        self._pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    @property
    def done(self) -> bool:
        """Whether the whole prompt has been scored."""
        return len(self._pieces) == len(self._ends)

    def read_piece(self) -> None:
        """Score the tokens of the next piece."""
        i, prompt = len(self._pieces), self._prompt
        start, end = self._ends[i - 1] if i else 0, self._ends[i]
        tokens, segment_ids = np.zeros((2, self._rows, power_of_two(end - start, SMALLEST_PIECE)), np.int32)
        tokens[0, : end - start] = prompt[start:end]
        segment_ids[0, : end - start] = 1
        size = max(self._size, CHUNK)
        self._cache, features = _read(self._model, self._params, self._cache, tokens, segment_ids, size=size)
        targets = np.zeros(size, np.int32)
        targets[: end - start] = prompt[start + 1 : end + 1]
        chunks = [
            _score(
                self._model,
                self._params,
                features,
                np.int32(first),
                targets[first : first + CHUNK],
                self._usable,
                several=self._n > 1,
            )
            for first in range(0, end - start, CHUNK)
        ]
        logprobs, top_tokens, top_logprobs = (
            np.concatenate(arrays)[: end - start] for arrays in zip(*jax.device_get(chunks), strict=True)
        )
        self._pieces.append((logprobs, top_tokens[:, : self._n], top_logprobs[:, : self._n]))

    def scores(self) -> PromptScores:
        """Return the scores. Call this only when `done` is true."""
        empty = (np.zeros(0, np.float32), np.zeros((0, self._n), np.int32), np.zeros((0, self._n), np.float32))
        return PromptScores(*(np.concatenate(arrays) for arrays in zip(empty, *self._pieces, strict=True)))


@functools.partial(jax.jit, static_argnames=("model", "size"), donate_argnames="cache")
def _read(
    model: Plamo2, params: dict, cache: Cache, tokens: Int[Array, "b t"], segment_ids: Int[Array, "b t"], *, size: int
) -> tuple[Cache, Float[Array, "1 s d"]]:
    """Return the cache after a piece, and the features of row 0 padded to `size` tokens."""
    features, cache = model.apply({"params": params}, tokens, segment_ids, cache=cache, method="features")
    padded = jnp.pad(features[:1], ((0, 0), (0, size - features.shape[1]), (0, 0)))
    return place_cache(model.mesh, cache), padded


@functools.partial(jax.jit, static_argnames=("model", "several"))
def _score(
    model: Plamo2,
    params: dict,
    features: Float[Array, "1 s d"],
    start: Int[Array, ""],
    targets: Int[Array, " c"],
    usable: Bool[Array, " v"],
    *,
    several: bool,
) -> tuple[Float[Array, " c"], Int[Array, "c n"], Float[Array, "c n"]]:
    """Return the log-probabilities of the targets and the most likely tokens at CHUNK positions, beginning at `start`."""
    chunk = jax.lax.dynamic_slice_in_dim(features, start, CHUNK, axis=1)
    logits = model.gather_channels(model.apply({"params": params}, chunk, method="logits"))[0]
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # The barrier makes both results use one array. If the compiler computed it twice, they could round differently.
    logprobs = jax.lax.optimization_barrier(logprobs)
    of_targets = jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]
    drawable = jnp.where(usable, logprobs, -jnp.inf)
    if several:
        n = min(MAX_TOP_LOGPROBS, drawable.shape[1])
        top_logprobs, top_tokens = jax.lax.top_k(drawable, n)
    else:
        top_logprobs = jnp.max(drawable, axis=-1, keepdims=True)
        top_tokens = jnp.argmax(drawable, axis=-1, keepdims=True)
    return of_targets, top_tokens.astype(jnp.int32), top_logprobs
