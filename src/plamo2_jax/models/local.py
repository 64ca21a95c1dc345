"""A chat model that runs in this process with the local engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.adapters.open import model_folders
from plamo2_jax.convert.load import LoadedModel
from plamo2_jax.convert.read import float_dtype
from plamo2_jax.engine.generator import Generator, default_stop_ids
from plamo2_jax.engine.prefill import power_of_two
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.weights import load_weights
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.cache import KeyDtype
from plamo2_jax.models.chat_model import (
    MIXED,
    NOTHING_BEFORE,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    Prompt,
    RequestError,
    Score,
    ScoreRequest,
    Usage,
)
from plamo2_jax.models.config import ChatModelConfig
from plamo2_jax.models.scoring import score_batch, split_texts
from plamo2_jax.models.shared_beginnings import Beginning, group_contexts
from plamo2_jax.models.stop_ids import answer_stop_ids
from plamo2_jax.tokenizer.chat_template import ChatTemplate, ChatTemplateOverrun, template_variables
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.validation import is_whole, shown

PREFIX_CACHE_BYTES = 1 << 30
"""Memory budget for the states of shared beginnings of prompts."""


def open_generator(
    model: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    max_slots: int = 64,
    mesh: jax.sharding.Mesh | None = None,
    key_dtype: KeyDtype = None,
) -> tuple[Generator, LoadedModel]:
    """Open a model for generation.

    Args:
        model: run folder, RUN@STEP, RUN@ema, folder in Hugging Face format or folder of adapters.
        step: checkpoint of a run folder; None: the step in `model`, or else the newest.
        dtype: dtype of activations and matrices; None: float32 on CPU and bfloat16 elsewhere.
        tokenizer: tokenizer.jsonl, or its folder, to use instead of the model's own tokenizer.
        max_slots: maximum number of texts generated together.
        mesh: mesh over which the model is sharded; None: use the first device.
        key_dtype: dtype of cached keys and values; None: the dtype of the activations.

    Returns:
        The generator, and the contents of the folder with the generator's parameters.

    Raises:
        PlamoError: the folder is not a model, or has no tokenizer; or the dtype is neither float32 nor bfloat16.
    """
    dtype = float_dtype(dtype)
    network, loaded = load_weights(model, step=step, dtype=dtype, mesh=mesh)
    vocabulary = loaded.tokenizer if tokenizer is None else Tokenizer.load(tokenizer)
    if vocabulary is None:
        raise PlamoError(
            f"{model} has no tokenizer.jsonl: a model needs one for text. Copy the file to the folder, or use --tokenizer if the command "
            "has this option"
        )
    return Generator(network, loaded.params, vocabulary, max_slots=max_slots, key_dtype=key_dtype), loaded


class LocalChatModel:
    """A `ChatModel` in this process.

    The tokens of a sample depend on the prompt, the seed and the index of the sample. They do not depend on other requests of a call.

    Args:
        generator: the model, with a tokenizer.
        template: chat template for `chat`.
        description: fields that identify the model.
        batch_size: maximum number of continuations scored together. `Generator.max_slots` limits the texts generated together.
        max_prompt_tokens: maximum number of prompt tokens in `chat`. A longer prompt gives a `RequestError`.
    """

    parallel = False

    def __init__(
        self,
        generator: Generator,
        template: ChatTemplate,
        description: Mapping[str, Any],
        *,
        batch_size: int = 64,
        max_prompt_tokens: int = 4096,
    ):
        self.generator, self.template, self.description = generator, template, description
        self._batch_size, self._max_prompt_tokens = batch_size, max_prompt_tokens
        self._answer_stop_ids = answer_stop_ids(generator.model, template, generator.tokenizer)

    @classmethod
    def open(cls, config: ChatModelConfig) -> LocalChatModel:
        """Open the model of a configuration.

        Raises:
            PlamoError: the folder is not a model, or has no tokenizer.
        """
        folders = model_folders(config.model)
        template = ChatTemplate.load(config.template) if config.template else ChatTemplate.of_model(*folders)
        generator, loaded = open_generator(config.model, dtype=config.dtype, max_slots=config.batch_size)
        description = {
            "model": config.model,
            "fingerprint": checkpoint.fingerprint(loaded.config, loaded.params),
            "template": hashlib.blake2b(template.source.encode(), digest_size=16).hexdigest(),
        }
        return cls(
            generator,
            template,
            description,
            batch_size=config.batch_size,
            max_prompt_tokens=config.max_prompt_tokens,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.generator.tokenizer

    def chat(
        self, requests: Sequence[ChatRequest], *, accept: Callable[[str], bool] | None = None
    ) -> list[list[ChatResponse] | RequestError]:
        """Answer conversations, as described in `ChatModel.chat`.

        Raises:
            ChatTemplateOverrun: the template exceeds its limits of time or memory.
        """
        del accept  # A second attempt would give the same text.
        return self._generate(requests, [self._encode_chat(request) for request in requests], self._answer_stop_ids)

    def complete(self, requests: Sequence[CompletionRequest]) -> list[list[ChatResponse] | RequestError]:
        """Continue prompts, as described in `ChatModel.complete`."""
        stop_ids = default_stop_ids(self.generator.model, self.tokenizer)
        return self._generate(requests, [self._encode(request.prompt, request.bos) for request in requests], stop_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score] | RequestError]:
        """Score continuations, as described in `ChatModel.score`, at most `batch_size` together."""
        encoded = [self._encode_score(request) for request in requests]
        results: list[list[Score] | RequestError] = [one if isinstance(one, RequestError) else [] for one in encoded]
        wanted = [i for i, one in enumerate(encoded) if not isinstance(one, RequestError) and one[1]]
        for group, shared in group_contexts([encoded[i][0] for i in wanted]):
            # Contexts of similar length share a batch to reduce padding.
            lengths = {i: (len(encoded[i][0]), max(map(len, encoded[i][1]))) for i in (wanted[j] for j in group)}
            members, beginning = sorted(lengths, key=lengths.__getitem__), None
            if shared:
                longest = power_of_two(max(map(sum, lengths.values())), 64)
                beginning = Beginning.read(self.generator, encoded[members[0]][0][:shared], longest)
            # Several continuations of a context are read with a second cache of `batch_size` rows.
            several = any(len(encoded[i][1]) > 1 for i in members)
            count = 1 << (max(1, self._batch_size // (2 if several else 1)).bit_length() - 1)
            for first in range(0, len(members), count):
                batch = members[first : first + count]
                contexts, continuations = zip(*(encoded[i] for i in batch), strict=True)
                found = score_batch(self.generator, contexts, continuations, self._batch_size, beginning)
                for i, scores in zip(batch, found, strict=True):
                    results[i] = scores
        return results

    def close(self) -> None:
        """Release the parameters."""
        self.generator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _generate(
        self,
        requests: Sequence[ChatRequest | CompletionRequest],
        encoded: Sequence[np.ndarray | RequestError],
        stop_ids: tuple[int, ...],
    ) -> list[list[ChatResponse] | RequestError]:
        checked = [
            ids if isinstance(ids, RequestError) else self._check_request(ids, request)
            for ids, request in zip(encoded, requests, strict=True)
        ]
        results: list[list[ChatResponse] | RequestError] = [
            one if isinstance(one, RequestError) else [] for one in checked
        ]
        valid = [i for i, one in enumerate(checked) if not isinstance(one, RequestError)]

        if not valid:
            return results
        rows = []
        for i in valid:
            request = requests[i]
            ids = (*stop_ids, *(request.stop.ids or ()))
            rows.append(
                [
                    Request(checked[i].astype(np.int32), request.sampling, request.stop, ids, request.seed, sample)
                    for sample in range(request.n)
                ]
            )
        cache = PrefixCache(PREFIX_CACHE_BYTES) if self._share_beginnings([some[0].prompt for some in rows]) else None
        jobs = iter(self.generator.run(rows, prefix_cache=cache).results())
        for i in valid:
            for _ in range(requests[i].n):
                completion = next(jobs)
                reason = "length" if completion.finish_reason == "length" else "stop"
                usage = Usage(len(checked[i]), len(completion.token_ids))
                results[i].append(ChatResponse(completion.text, reason, usage, 0, completion.token_ids))
        return results

    def _share_beginnings(self, prompts: Sequence[np.ndarray]) -> bool:
        """Return whether a prefix cache saves a large part of the reading: it stores states after whole pieces of a prompt."""
        size = self.generator.prefill_size
        beginnings = [prompt[:end].tobytes() for prompt in prompts for end in range(size, len(prompt), size)]
        return (len(beginnings) - len(set(beginnings))) * size > sum(map(len, prompts)) / 4

    def _encode_chat(self, request: ChatRequest) -> np.ndarray | RequestError:
        variables = template_variables(request.variables)
        try:
            chat = self.template.encode(self.tokenizer, request.messages, add_generation_prompt=True, **variables)
        except ChatTemplateOverrun:
            raise
        except ValueError as error:
            return RequestError(f"the chat template refuses the conversation: {error}")
        if not 0 < len(chat.ids) <= self._max_prompt_tokens:
            return RequestError(f"{len(chat.ids)} tokens: 1 to max_prompt_tokens={self._max_prompt_tokens} are allowed")
        return chat.ids

    def _encode(self, prompt: Prompt, bos: bool) -> np.ndarray | RequestError:
        try:
            ids = np.asarray(self.tokenizer.encode(prompt, bos=bos) if isinstance(prompt, str) else prompt)
        except ValueError as error:
            return RequestError(f"the prompt is neither text nor a list of token ids: {error}")
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            return RequestError(f"the prompt has shape {ids.shape} of {ids.dtype}: it must be at least one token id")
        return ids

    def _encode_score(self, request: ScoreRequest) -> tuple[np.ndarray, list[np.ndarray]] | RequestError:
        parts = (request.context, *request.continuations)
        texts = [isinstance(part, str) for part in parts]
        if any(texts) and not all(texts):
            return RequestError(MIXED)
        if all(texts):
            try:
                context, continuations = split_texts(
                    self.tokenizer, request.context, request.continuations, bos=request.bos
                )
            except ValueError as error:
                return RequestError(f"the context or a continuation is not text: {error}")
        else:
            found = [self._encode(part, False) if len(part) else np.zeros(0, np.int32) for part in parts]
            if wrong := next((ids for ids in found if isinstance(ids, RequestError)), None):
                return wrong
            context, *continuations = found
        if not len(context):
            return RequestError(NOTHING_BEFORE)
        for ids in continuations:
            if isinstance(problem := self._check(np.concatenate([context, ids]), 0), RequestError):
                return problem
        return context, continuations

    def _check_request(self, ids: np.ndarray, request: ChatRequest | CompletionRequest) -> np.ndarray | RequestError:
        last = self.generator.model.config.vocab_size - 1
        if not (is_whole(request.n) and request.n >= 1):
            return RequestError(f"n={shown(request.n)}: it must be at least 1")
        if not (is_whole(request.seed) and 0 <= request.seed < 1 << 32):
            return RequestError(f"seed={shown(request.seed)}: it must be from 0 to {(1 << 32) - 1}")
        if max(request.stop.ids or (), default=0) > last:
            return RequestError(f"stop ids {shown(request.stop.ids)}: the model has ids from 0 to {last}")
        return self._check(ids, request.stop.max_new_tokens)

    def _check(self, ids: np.ndarray, more: int) -> np.ndarray | RequestError:
        """Return the ids, or an error if the model cannot read them and generate `more` tokens."""
        last = self.generator.model.config.vocab_size - 1
        if ids.min() < 0 or ids.max() > last:
            return RequestError(f"token ids from {ids.min()} to {ids.max()}: the model has ids from 0 to {last}")
        if len(ids) + more > self.generator.max_length:
            return RequestError(
                f"{len(ids)} tokens and max_new_tokens={more} exceed the model's maximum of {self.generator.max_length} tokens"
            )
        return ids
