"""The decode engine: prefills prompts, inserts them into slots, and decodes all slots together.

    engine = Engine(model, params, slots=8, max_length=2048)
    for slot, request in enumerate(requests):
        engine.insert(slot, engine.prefill(request.prompt), request)
    burst = engine.step(16)

The caller (`scheduler.Scheduler`) decides which request gets which slot and when a request ends. With a fixed number of slots, the tokens
of a row do not depend on the other rows: all slots run the same program, and the piece boundaries depend only on the prompt.
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
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2
from plamo2_jax.model.axes import ROWS

CAPACITY = 32
"""Maximum number of tokens that one call of `Engine.step` generates for a row."""


class Engine:
    """Decodes a fixed number of rows (slots) together.

    Args:
        model: the network, without a scan over layers (`scan_layers=False`).
        params: the unstacked parameters of the model (`weights.unstack`).
        slots: number of rows decoded together, rounded up to a multiple of the devices that the rows are sharded over.
        max_length: maximum number of tokens of a row, prompt and continuation.
        prefill_size: maximum number of prompt tokens in one forward pass, a power of two.
        usable: only token ids below this number may be drawn; None: all ids.
        prefix_cache: snapshots of prompts; None: every prompt is read from the beginning.
        speculation: settings of prompt lookup; None: one token per step.
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
        # The rows are sharded evenly over the devices.
        self.slots = slots + -slots % self._copies
        # A kernel that the user selected is used for prefill only: decoding one token needs another implementation.
        # XLA cannot divide the C++ kernels over devices.
        products = "auto" if model.mesh is None else "xla"
        self._decoder = model.clone(implementation="auto", product_implementation=products)
        self._history = 0 if speculation is None else max_length
        try:
            self._state = committed(empty_state(model, self.slots, max_length, self._history))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise PlamoError(
                f"the caches of {self.slots} row(s) with {max_length:,} tokens do not fit into memory: use fewer or shorter rows"
            ) from error
        self._words = -(-v // 32)
        # Transferred to the device once, because most calls constrain no row.
        self._unconstrained = jax.device_put(
            (np.zeros((self.slots, self._words), np.uint32), np.zeros(self.slots, bool))
        )

    def start_prefill(self, prompt: np.ndarray, boundaries: Sequence[int] = (), salt: str = "") -> PromptReader:
        """Return a reader that prefills a prompt piece by piece. `PromptReader` describes the arguments."""
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
        """Prefill a whole prompt. `PromptReader` describes the arguments."""
        reader = self.start_prefill(prompt, boundaries, salt)
        while not reader.done:
            reader.read_piece()
        return reader.prefix()

    def start_scoring(self, prompt: np.ndarray, top_logprobs: int) -> PromptScorer:
        """Return a scorer of the tokens of a prompt. `PromptScorer` describes the arguments."""
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
        """Start a request in a slot. The previous contents of the slot are overwritten."""
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
        """Generate up to `count` tokens for each row that has not ended. Speculation may add a few tokens, up to CAPACITY.

        Args:
            count: number of tokens, at most CAPACITY.
            until_free: return as soon as a row ends.
            allowed: maps each constrained slot to its allowed token ids as bits [ceil(v/32)] u32. `count` must then be 1.

        Returns:
            NumPy arrays with space for CAPACITY tokens of each row.
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
        """End the rows in these slots early."""
        ended = np.zeros(self.slots, bool)
        ended[list(slots)] = True
        self._state = release(self._state, ended)

    def warm_up(self, *, scoring: bool = False) -> None:
        """Compile every function for every shape. Call this while all slots are free. Later calls do not compile again.

        Args:
            scoring: also compile the functions that `start_scoring` uses.
        """
        kept = self.prefix_cache
        # A temporary cache: warm-up prompts must not stay in the real one, whose budget may be too small for them.
        self.prefix_cache = None if kept is None else PrefixCache(1 << 62)
        try:
            size, sizes = SMALLEST_PIECE, []
            while size < 2 * self._prefill_size and size < 2 * self.max_length:
                sizes.append(min(size + 1, self.max_length))
                size *= 2
            for length in sizes:
                prompt = np.zeros(length, np.int32)
                # With a prefix cache, the second call restores a snapshot.
                prefix = [self.prefill(prompt, salt=str(length)) for _ in range(2)][1]
                if scoring:
                    for top_logprobs in (1, 2):
                        scorer = self.start_scoring(prompt, top_logprobs)
                        while not scorer.done:
                            scorer.read_piece()
            # This prompt compiles the snapshot between two pieces.
            long = np.zeros(min(2 * SMALLEST_SPAN, self.max_length), np.int32)
            self.prefill(long, boundaries=[SMALLEST_SPAN])
            self.insert(0, prefix, Request(prefix.prompt, SamplingConfig(), StopConfig(3), (), 0, 0))
            self.step(1)
            self.step(1, allowed={0: np.full(self._words, 0xFFFFFFFF, np.uint32)})
            self.release([0])
        finally:
            self.prefix_cache = kept
