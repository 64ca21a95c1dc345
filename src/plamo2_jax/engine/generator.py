"""Generation: prompts in, texts out, by batched prefill and decoding with the hybrid cache.

generator = Generator(model, params, tokenizer)
for completion in generator.generate(["吾輩は", "Once upon a time"], stop=StopConfig(max_new_tokens=64)):
    print(completion.text)
for row, piece in generator.stream(["吾輩は"]):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.generation import Generation
from plamo2_jax.engine.prefill import SMALLEST_PIECE, power_of_two
from plamo2_jax.engine.request import Completion, Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import unstack
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.tokenizer.tokenizer import BOS, OP, Tokenizer

# Shortest rows that an engine is made for.
_SMALLEST_CACHE = 64

Prompt = str | Sequence[int] | np.ndarray
"""A text, or token ids [t]."""


def default_stop_ids(model: Plamo2, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Ids that end a document: bos, which separates documents in the published models, eos, and op.

    `<|plamo:op|>` opens a line of a prompt (the translation models end their answers with it) and is never part of a document.
    """
    ids = {model.config.bos_token_id, *model.config.eos_token_ids} - {None}
    if tokenizer is not None:
        ids |= {tokenizer.bos_id, tokenizer.eos_id}
        ids |= {tokenizer.op_id} if OP in tokenizer.tokens else set()
    return tuple(sorted(ids))


class Generator:
    """A model ready to write: an `Engine` is made for each call, as large as it needs.

    Shapes are few, so that compilations are: the last piece of a prompt is padded to a power of two and all others have
    `prefill_size` tokens; the cache's length and the number of slots are powers of two. No setting of a call compiles anything.

    Args:
        model: the network.
        params: its parameters, on any devices; see `weights` for loading them as decoding wants them.
        tokenizer: for prompts and results as text; None: ids only.
        prefill_size: tokens of a row read at once at most; bounds the memory of prefill.
        max_length: tokens of a row, prompt and continuation, at most; None: the model's max_position_embeddings. The cache is as
            long as a request needs.
        max_slots: rows decoded together at most; further ones wait until others end.

    Attributes:
        model: the network without a scan over layers.
        params: its parameters, those of each period apart.

    Raises:
        ValueError: prefill_size is not a power of two of at least 16, or the tokenizer has more rows than the model.
    """

    def __init__(
        self,
        model: Plamo2,
        params: dict,
        tokenizer: Tokenizer | None = None,
        *,
        prefill_size: int = 512,
        max_length: int | None = None,
        max_slots: int = 64,
    ):
        if prefill_size < SMALLEST_PIECE or prefill_size & (prefill_size - 1):
            raise PlamoError(
                f"prefill_size={prefill_size} is not allowed; it must be a power of two of at least {SMALLEST_PIECE}"
            )
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise PlamoError(
                f"the tokenizer has {tokenizer.vocab_size} rows; the model's embedding has {model.config.vocab_size}"
            )
        self.params = unstack(model, params) if model.scan_layers else params
        # A mesh of one device tells the kernels that they need not be divided, however many devices there are.
        devices = {device for leaf in jax.tree.leaves(params) for device in leaf.devices()}
        alone = model.mesh is None and len(devices) == 1 and jax.default_backend() != "cpu"
        mesh = make_mesh(MeshConfig(), list(devices)) if alone else model.mesh
        self.model = model.clone(scan_layers=False, mesh=mesh)
        self.tokenizer = tokenizer
        self.prefill_size = prefill_size
        self.max_length = model.config.max_position_embeddings if max_length is None else max_length
        self.max_slots = max_slots

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
        """Continue prompts and return all completions. Options, order and errors are those of `stream`."""
        return self.stream(prompts, **options).results()

    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingConfig | None = None,
        stop: StopConfig | None = None,
        seed: int = 0,
        samples: int = 1,
        bos: bool = True,
        allow_control: bool = False,
    ) -> Generation:
        """Continue prompts piece by piece.

        Args:
            prompts: texts, or token ids that are taken as they are. An empty text is the beginning of a document: bos alone.
            sampling: how tokens are chosen; None: by the model's own distribution.
            stop: what ends a row; None: 256 tokens or the end of the document.
            seed: same seed, prompt and sample number, same text, whatever else is in the batch.
            samples: rows a prompt; row `i * samples + j` is sample j of prompt i.
            bos: put the beginning-of-document id before texts, but not twice where `allow_control` reads one at the beginning.
            allow_control: read control strings such as <|plamo:op|> in texts as control tokens. Not for text of others.

        Returns:
            An iterator of (row, text piece); nothing is computed before its first item is asked for.

        Raises:
            ValueError: a prompt is empty, holds an id outside the vocabulary or is too long with what may be added to it; text
                without a tokenizer; no prompt; samples, seed or a stop id out of range.
        """
        sampling, stop = sampling or SamplingConfig(), stop or StopConfig()
        if not len(prompts):
            raise PlamoError("there is no prompt; give at least one (an empty text is the beginning of a document)")
        if samples < 1:
            raise PlamoError(f"samples={samples} is not allowed; it must be at least 1")
        if not 0 <= seed < 1 << 32:
            raise PlamoError(f"seed={seed} is not allowed; it must be from 0 to {(1 << 32) - 1}")
        if stop.strings and self.tokenizer is None:
            raise PlamoError(f"stop strings {stop.strings} are not allowed: the generator has no tokenizer")
        rows = [self._ids(i, prompt, bos, allow_control) for i, prompt in enumerate(prompts)]
        for i, row in enumerate(rows):
            if len(row) + stop.max_new_tokens > self.max_length:
                raise PlamoError(
                    f"prompt {i} has {len(row)} tokens; with max_new_tokens={stop.max_new_tokens} that exceeds"
                    f" max_length={self.max_length}"
                )
        stop_ids = default_stop_ids(self.model, self.tokenizer) if stop.ids is None else stop.ids
        if max(stop_ids, default=0) >= self.model.config.vocab_size:
            raise PlamoError(
                f"stop ids {stop_ids} are not allowed: the model's go from 0 to {self.model.config.vocab_size - 1}"
            )
        requests = [[Request(row, sampling, stop, stop_ids, seed, sample) for sample in range(samples)] for row in rows]

        def start() -> Engine:
            return Engine(
                self.model,
                self.params,
                slots=power_of_two(min(len(rows) * samples, self.max_slots), 1),
                max_length=power_of_two(max(map(len, rows)) + stop.max_new_tokens, _SMALLEST_CACHE),
                prefill_size=self.prefill_size,
                usable=None if self.tokenizer is None else self.tokenizer.vocab_size,
            )

        return Generation(requests, start, self.tokenizer)

    def _ids(self, index: int, prompt: Prompt, bos: bool, allow_control: bool) -> np.ndarray:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise PlamoError(f"prompt {index} is text and the generator has no tokenizer; give token ids")
            # A prompt that spells bos out, as a chat template writes it, has it already.
            begins = allow_control and prompt.startswith(BOS)
            prompt = self.tokenizer.encode(prompt, bos=bos and not begins, allow_control=allow_control)
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise PlamoError(f"prompt {index} has no token; a document begins with bos")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise PlamoError(f"prompt {index} must be one row of integers, not shape {ids.shape} of {ids.dtype}")
        if ids.min() < 0 or ids.max() >= self.model.config.vocab_size:
            raise PlamoError(
                f"prompt {index} holds ids from {ids.min()} to {ids.max()};"
                f" the model's go from 0 to {self.model.config.vocab_size - 1}"
            )
        return ids.astype(np.int32)
