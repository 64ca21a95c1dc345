"""The decode engine: it prefills prompts, inserts them into slots, and decodes all slots together.

    engine = Engine(model, params, slots=8, max_length=2048)
    for slot, request in enumerate(requests):
        engine.insert(slot, engine.prefill(request.prompt), request)
    tokens, logprobs = engine.step(16)

The caller (`generation.Generation`) decides which request gets which slot and when a request ends. With a fixed number of slots, the tokens
of a row do not depend on the other rows: every slot runs the same program, and the way a prompt is cut depends only on its own length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from plamo2_jax.engine.prefill import read_prompts
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import PROMPT
from plamo2_jax.engine.step import decode, empty_state, insert, release
from plamo2_jax.model import Plamo2
from plamo2_jax.model.axes import ROWS
from plamo2_jax.model.cache import Cache

CAPACITY = 32
"""Tokens of a row that one call of `Engine.step` generates at most."""


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The state after a prompt without its last token. The first decode step reads that token and computes its logits."""

    cache: Cache
    """Its first row is the prompt's; the others pad the batch to the mesh."""
    prompt: np.ndarray
    """Token ids [t] i32."""


class Engine:
    """A fixed number of slots.

    Args:
        model: the network, without a scan over layers (`scan_layers=False`).
        params: its parameters (`weights.unstack`).
        slots: rows decoded together.
        max_length: tokens of a row, prompt and continuation, at most.
        prefill_size: tokens of a prompt read at once at most, a power of two.
        usable: ids that may be drawn: those below it. None: all.
    """

    def __init__(
        self,
        model: Plamo2,
        params: dict,
        *,
        slots: int,
        max_length: int,
        prefill_size: int = 512,
        usable: int | None = None,
    ):
        v = model.config.vocab_size
        self._model, self._params, self._prefill_size, self._max_length = model, params, prefill_size, max_length
        self._usable = jax.device_put(np.arange(v) < (v if usable is None else usable))
        self._copies = 1 if model.mesh is None else int(np.prod([model.mesh.shape[name] for name in ROWS]))
        # Rows that lie on several devices divide over them.
        self.slots = slots + -slots % self._copies
        # Kernels that are named serve pieces of prompts; a single token has a way of its own.
        self._decoder = model.clone(implementation="auto")
        self._state = empty_state(model, self.slots, max_length)

    def prefill(self, prompt: np.ndarray) -> Prefix:
        """Read a prompt by itself: in a batch, its bits could depend on its row (jax 0.12 on CPU rounds the last row differently).

        Args:
            prompt: token ids [t] i32, not empty.
        """
        cache = read_prompts(
            self._model,
            self._params,
            [prompt[:-1]],
            rows=self._copies,
            max_length=self._max_length,
            prefill_size=self._prefill_size,
        )
        return Prefix(cache, prompt)

    def insert(self, slot: int, prefix: Prefix, request: Request) -> None:
        """Begin a request in a slot, whatever was there before."""
        v = self._model.config.vocab_size
        counts = np.zeros(v, np.int32)
        counts[prefix.prompt] = PROMPT
        self._state = insert(
            self._state,
            prefix.cache,
            np.int32(slot),
            prefix.prompt[-1],
            counts,
            request.settings(v),
        )

    def step(self, count: int, *, until_free: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Generate up to `count` tokens, at most CAPACITY, for each row that has not ended.

        Args:
            until_free: return as soon as a row ends.

        Returns:
            Token ids [count, slots] i32, -1 where there is none, and their log-probabilities in nats, f32.
        """
        self._state, tokens, logprobs = decode(
            self._decoder,
            self._params,
            self._state,
            self._usable,
            np.int32(count),
            np.bool_(until_free),
            capacity=CAPACITY,
        )
        tokens, logprobs = jax.device_get((tokens, logprobs))
        return tokens[:count], logprobs[:count]

    def release(self, slots: Sequence[int]) -> None:
        """End rows before their time."""
        ended = np.zeros(self.slots, bool)
        ended[list(slots)] = True
        self._state = release(self._state, ended)
