"""The decode engine: it prefills prompts, inserts them into slots, and decodes all slots together.

    engine = Engine(model, params, slots=8, max_length=2048)
    for slot, request in enumerate(requests):
        engine.insert(slot, engine.prefill(request.prompt), request)
    burst = engine.step(16)

The caller (`scheduler.Scheduler`) decides which request gets which slot and when a request ends. With a fixed number of slots, the tokens
of a row do not depend on the other rows: every slot runs the same program, and the prompt alone decides how it is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from plamo2_jax.engine.prefill import SMALLEST_PIECE, SMALLEST_SPAN, Prefix, PromptReader
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.prompt_scores import PromptScorer
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import PROMPT, SamplingConfig
from plamo2_jax.engine.shardings import committed
from plamo2_jax.engine.speculation import SpeculationConfig
from plamo2_jax.engine.step import Burst, decode, empty_state, insert, release
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.model import Plamo2
from plamo2_jax.model.axes import ROWS

CAPACITY = 32
"""Tokens of a row that one call of `Engine.step` generates at most."""


class Engine:
    """A fixed number of slots.

    Args:
        model: the network, without a scan over layers (`scan_layers=False`).
        params: its parameters (`weights.unstack`).
        slots: rows decoded together.
        max_length: tokens of a row, prompt and continuation, at most.
        prefill_size: tokens of a prompt read at once at most, a power of two.
        usable: number of ids that may be drawn, from 0 on; None: all.
        prefix_cache: snapshots of prompts; None: every prompt is read from its beginning.
        speculation: drafts by prompt lookup; None: one token per step.
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
        prefix_cache: PrefixCache | None = None,
        speculation: SpeculationConfig | None = None,
    ):
        v = model.config.vocab_size
        self._model, self._params, self._prefill_size = model, params, prefill_size
        self.max_length, self.prefix_cache, self._speculation = max_length, prefix_cache, speculation
        self._usable = jax.device_put(np.arange(v) < (v if usable is None else usable))
        self._copies = 1 if model.mesh is None else int(np.prod([model.mesh.shape[name] for name in ROWS]))
        # Rows that lie on several devices divide over them.
        self.slots = slots + -slots % self._copies
        # Kernels that are named serve pieces of prompts; a single token has a way of its own.
        self._decoder = model.clone(implementation="auto")
        self._history = 0 if speculation is None else max_length
        self._state = committed(empty_state(model, self.slots, max_length, self._history))
        self._words = -(-v // 32)
        # On the device once, since most calls constrain no row.
        self._unconstrained = jax.device_put(
            (np.zeros((self.slots, self._words), np.uint32), np.zeros(self.slots, bool))
        )

    def start_prefill(self, prompt: np.ndarray, boundaries: Sequence[int] = (), salt: str = "") -> PromptReader:
        """Begin to read a prompt; arguments as in `PromptReader`."""
        return PromptReader(
            self._model,
            self._params,
            prompt,
            boundaries=boundaries,
            rows=self._copies,
            max_length=self.max_length,
            prefill_size=self._prefill_size,
            prefix_cache=self.prefix_cache,
            salt=salt,
        )

    def prefill(self, prompt: np.ndarray, boundaries: Sequence[int] = (), salt: str = "") -> Prefix:
        """Read a prompt; arguments as in `PromptReader`."""
        reader = self.start_prefill(prompt, boundaries, salt)
        while not reader.done:
            reader.read_piece()
        return reader.prefix()

    def start_scoring(self, prompt: np.ndarray, top_logprobs: int) -> PromptScorer:
        """Begin to score the tokens of a prompt; arguments as in `PromptScorer`."""
        return PromptScorer(
            self._model,
            self._params,
            prompt,
            rows=self._copies,
            max_length=self.max_length,
            prefill_size=self._prefill_size,
            usable=self._usable,
            top_logprobs=top_logprobs,
        )

    def insert(self, slot: int, prefix: Prefix, request: Request) -> None:
        """Begin a request in a slot, whatever was there before."""
        v = self._model.config.vocab_size
        counts = np.zeros(v, np.int32)
        counts[prefix.prompt] = PROMPT
        history = np.zeros(self._history, np.int32)
        history[: len(prefix.prompt)] = prefix.prompt[: self._history]
        self._state = insert(
            self._state,
            prefix.cache,
            np.int32(slot),
            prefix.prompt[-1],
            counts,
            request.settings(v),
            history,
            np.int32(len(prefix.prompt)),
        )

    def step(self, count: int, *, until_free: bool = False, allowed: Mapping[int, np.ndarray] | None = None) -> Burst:
        """Generate up to `count` tokens, at most CAPACITY, for each row that has not ended. With speculation it may be a few more.

        Args:
            until_free: return as soon as a row ends.
            allowed: for slots that may draw some ids only, the ids as bits [ceil(v/32)] u32; then `count` must be 1.

        Returns:
            NumPy arrays with room for CAPACITY tokens of each row.
        """
        if allowed:
            bits, constrained = np.zeros((self.slots, self._words), np.uint32), np.zeros(self.slots, bool)
            for slot, row in allowed.items():
                bits[slot], constrained[slot] = row, True
        else:
            bits, constrained = self._unconstrained
        self._state, burst = decode(
            self._decoder,
            self._params,
            self._state,
            self._usable,
            bits,
            constrained,
            np.int32(count),
            np.bool_(until_free),
            capacity=CAPACITY,
            speculation=self._speculation,
        )
        return jax.device_get(burst)

    def release(self, slots: Sequence[int]) -> None:
        """End rows before their time."""
        ended = np.zeros(self.slots, bool)
        ended[list(slots)] = True
        self._state = release(self._state, ended)

    def warm_up(self, *, scoring: bool = False) -> None:
        """Compile every function for every shape, while no slot is taken. Later calls compile nothing.

        Args:
            scoring: also the functions of `start_scoring`.
        """
        kept = self.prefix_cache
        # Prompts of a warm-up must not stay in the cache, and its budget may be too small for some of them.
        self.prefix_cache = None if kept is None else PrefixCache(1 << 62)
        try:
            size, sizes = SMALLEST_PIECE, []
            while size < 2 * self._prefill_size and size < 2 * self.max_length:
                sizes.append(min(size + 1, self.max_length))
                size *= 2
            for length in sizes:
                prompt = np.zeros(length, np.int32)
                # The second time, a snapshot is restored where there is a prefix cache.
                prefix = [self.prefill(prompt, salt=str(length)) for _ in range(2)][1]
                if scoring:
                    for top_logprobs in (1, 2):
                        scorer = self.start_scoring(prompt, top_logprobs)
                        while not scorer.done:
                            scorer.read_piece()
            # A snapshot between two pieces.
            long = np.zeros(min(2 * SMALLEST_SPAN, self.max_length), np.int32)
            self.prefill(long, boundaries=[SMALLEST_SPAN])
            self.insert(0, prefix, Request(prefix.prompt, SamplingConfig(), StopConfig(3), (), 0, 0))
            self.step(1)
            self.step(1, allowed={0: np.full(self._words, 0xFFFFFFFF, np.uint32)})
            self.release([0])
        finally:
            self.prefix_cache = kept
