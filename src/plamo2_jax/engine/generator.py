"""Text generation from Python, with batched prefill and decoding.

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
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.request import Completion, Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import unstack
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2
from plamo2_jax.model.cache import KeyDtype
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.tokenizer.tokenizer import BOS, OP, Tokenizer

# Smallest `max_length` of an engine, in tokens: fewer cache lengths mean fewer compilations.
_SMALLEST_CACHE = 64

Prompt = str | Sequence[int] | np.ndarray
"""A text, or token ids [t]."""


def default_stop_ids(model: Plamo2, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Return the token ids that end a document: bos (it separates documents in the published models), eos and op.

    `<|plamo:op|>` starts a line of a prompt and never occurs in a document. The translation models end their answers with it.
    """
    ids = {model.config.bos_token_id, *model.config.eos_token_ids} - {None}
    if tokenizer is not None:
        ids |= {tokenizer.bos_id, tokenizer.eos_id}
        ids |= {tokenizer.op_id} if OP in tokenizer.tokens else set()
    return tuple(sorted(ids))


class Generator:
    """Generates text with a model. Each call creates an `Engine` of the size that it needs.

    Few shapes occur, so few programs are compiled. The last piece of a prompt is padded to a power of two, and all other pieces have
    `prefill_size` tokens. The cache length and the number of slots are powers of two. Sampling and stop settings are not compiled in.

    Args:
        model: the network.
        params: parameters of the model, on any devices. `weights.load_weights` loads them in the best layout for decoding.
        tokenizer: encodes prompts and decodes results; None: only token ids are accepted and returned.
        prefill_size: maximum number of tokens of a row in one forward pass, a power of two. It limits the memory of prefill.
        max_length: maximum number of tokens of a row, prompt and continuation; None: `max_position_embeddings` of the model. The
            cache has only the length that a call needs.
        max_slots: maximum number of rows decoded together. Other rows wait for a free slot.
        key_dtype: dtype of cached keys and values; None: the dtype of the activations.

    Attributes:
        model: the network without a scan over layers.
        params: its unstacked parameters, with one subtree per period.

    Raises:
        PlamoError: prefill_size is not a power of two of at least 16, or the tokenizer has more entries than the model's embedding.
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
        key_dtype: KeyDtype = None,
    ):
        if prefill_size < SMALLEST_PIECE or prefill_size & (prefill_size - 1):
            raise PlamoError(
                f"prefill_size={prefill_size} is not allowed: it must be a power of two of at least {SMALLEST_PIECE}"
            )
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise PlamoError(
                f"the tokenizer has {tokenizer.vocab_size} entries, but the model's embedding has only "
                f"{model.config.vocab_size}: use the tokenizer of the model"
            )
        self.params = unstack(model, params) if model.scan_layers else params
        # With a mesh of one device, the kernels skip sharding even if the machine has more devices.
        devices = {device for leaf in jax.tree.leaves(params) for device in leaf.devices()}
        alone = model.mesh is None and len(devices) == 1 and jax.default_backend() != "cpu"
        mesh = make_mesh(MeshConfig(), list(devices)) if alone else model.mesh
        self.model = model.clone(scan_layers=False, mesh=mesh, key_dtype=key_dtype)
        self.tokenizer = tokenizer
        self.prefill_size = prefill_size
        self.max_length = model.config.max_position_embeddings if max_length is None else max_length
        self.max_slots = max_slots

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
        """Continue prompts and return all completions. `stream` describes the options, the order and the errors."""
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
        """Continue prompts and return the text piece by piece.

        Args:
            prompts: texts, or token ids, which are not changed. An empty text becomes bos alone, the beginning of a document.
            sampling: sampling settings; None: draw from the model's distribution.
            stop: stop settings; None: stop after 256 tokens or at the end of the document.
            seed: random seed. The same seed, prompt and sample number give the same text in any batch in float32.
            samples: number of rows for each prompt. Row `i * samples + j` is sample j of prompt i.
            bos: put the beginning-of-document id before a text, unless `allow_control` reads it from the start of the text.
            allow_control: read control strings such as <|plamo:op|> in texts as control tokens. Do not use this with untrusted text.

        Returns:
            An iterator of (row number, text piece). The computation starts with the first `next`.

        Raises:
            PlamoError: there is no prompt; a prompt is empty, has an id outside the vocabulary, or exceeds `max_length` together with
                `max_new_tokens`; text is used without a tokenizer; samples, seed or a stop id is out of range.
        """
        sampling, stop = sampling or SamplingConfig(), stop or StopConfig()
        if not len(prompts):
            raise PlamoError("there is no prompt. Give at least one (an empty text is the beginning of a document)")
        if samples < 1:
            raise PlamoError(f"samples={samples} is not allowed: it must be at least 1")
        rows = [self._ids(i, prompt, bos, allow_control) for i, prompt in enumerate(prompts)]
        stop_ids = default_stop_ids(self.model, self.tokenizer) if stop.ids is None else stop.ids
        return self.run(
            [[Request(row, sampling, stop, stop_ids, seed, sample) for sample in range(samples)] for row in rows]
        )

    def run(self, requests: Sequence[Sequence[Request]], *, prefix_cache: PrefixCache | None = None) -> Generation:
        """Continue prompts with settings of their own, and return the text piece by piece.

        Args:
            requests: for each prompt, the requests of its samples, which have the same prompt.
            prefix_cache: stores the states of prompts, so that a beginning that several prompts share is read once or twice. It does not
                change any bits of the results. None: every prompt is read from its beginning.

        Returns:
            An iterator of (row number, text piece). The computation starts with the first `next`.

        Raises:
            PlamoError: a prompt exceeds `max_length` together with `max_new_tokens`; stop strings are used without a tokenizer; a seed or
                a stop id is out of range.
        """
        for i, (first, *_) in enumerate(requests):
            stop = first.stop
            if not 0 <= first.seed < 1 << 32:
                raise PlamoError(f"seed={first.seed} is not allowed: it must be from 0 to {(1 << 32) - 1}")
            if stop.strings and self.tokenizer is None:
                raise PlamoError(f"stop strings {stop.strings} are not allowed: the generator has no tokenizer")
            if len(first.prompt) + stop.max_new_tokens > self.max_length:
                raise PlamoError(
                    f"prompt {i} has {len(first.prompt)} tokens; together with "
                    f"max_new_tokens={stop.max_new_tokens} they exceed max_length={self.max_length}"
                )
            if max(first.stop_ids, default=0) >= self.model.config.vocab_size:
                raise PlamoError(
                    f"stop ids {first.stop_ids} are not allowed: the model has ids from 0 to {self.model.config.vocab_size - 1}"
                )
        firsts, count = [some[0] for some in requests], sum(map(len, requests))

        def start() -> Engine:
            return Engine(
                self.model,
                self.params,
                slots=power_of_two(min(count, self.max_slots), 1),
                max_length=power_of_two(
                    max(len(one.prompt) + one.stop.max_new_tokens for one in firsts), _SMALLEST_CACHE
                ),
                prefill_size=self.prefill_size,
                usable=None if self.tokenizer is None else self.tokenizer.vocab_size,
                prefix_cache=prefix_cache,
            )

        return Generation(requests, start, self.tokenizer)

    def _ids(self, index: int, prompt: Prompt, bos: bool, allow_control: bool) -> np.ndarray:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise PlamoError(f"prompt {index} is text, but the generator has no tokenizer. Give token ids")
            # A chat template writes bos as text, so it must not be added again.
            begins = allow_control and prompt.startswith(BOS)
            prompt = self.tokenizer.encode(prompt, bos=bos and not begins, allow_control=allow_control)
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise PlamoError(f"prompt {index} has no tokens: it must have at least one (a document begins with bos)")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise PlamoError(f"prompt {index} must be one row of integers, not shape {ids.shape} of {ids.dtype}")
        if ids.min() < 0 or ids.max() >= self.model.config.vocab_size:
            raise PlamoError(
                f"prompt {index} has ids from {ids.min()} to {ids.max()}: they must be from 0 to "
                f"{self.model.config.vocab_size - 1}"
            )
        return ids.astype(np.int32)
