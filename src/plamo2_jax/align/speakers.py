"""Who answers: a model in our own engine, or one behind an endpoint. Policies and judges are both."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax.numpy as jnp
import numpy as np

from plamo2_jax.adapters.open import open_model
from plamo2_jax.align.chat import template_variables
from plamo2_jax.checkpoint import fingerprint
from plamo2_jax.engine.generator import Generator, default_stop_ids
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import cast_matrices
from plamo2_jax.model import Plamo2
from plamo2_jax.surgery.merge.sources import ModelName
from plamo2_jax.tokenizer.chat_template import ChatTemplate, ChatTemplateError, ChatTemplateOverrun
from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class SpeakerConfig:
    """A model that is asked: of a folder, run by our own engine, or behind an OpenAI-compatible endpoint.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    model: str = ""
    """Run folder, folder of the public layout, RUN@STEP or RUN@ema; with `url`, the model's name there."""
    url: str | None = None
    """Endpoint, such as http://localhost:8000/v1; none: our own engine."""
    key_variable: str | None = None
    """Environment variable with the endpoint's key; none: it wants none. The key itself is never in a configuration or a file."""
    template: str | None = None
    """Own engine: chat template (`chat`, `translate`, a Jinja file, a folder with one); none: the model's, or else `chat`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Own engine: of activations and matrices."""
    rows: int = 64
    """Own engine: answers written together. With other numbers the last bits of logits differ, and so may answers."""
    max_prompt_tokens: int = 4096
    """Own engine: longer prompts are given up."""
    concurrency: int = 8
    """Endpoint: requests at a time."""
    timeout: float = 120.0
    """Endpoint: seconds for one request."""
    attempts: int = 6
    """Endpoint: tries before an answer is given up."""
    backoff: float = 1.0
    """Endpoint: seconds before the second try, at most; the bound doubles with every further one, up to a minute."""

    def __post_init__(self) -> None:
        self._require("url", self.url is None or _is_address(self.url), "http://HOST/... or https://HOST:PORT/...")
        variable = self.key_variable is None or re.fullmatch(r"[A-Za-z_]\w*", self.key_variable)
        self._require("key_variable", variable, "the name of an environment variable")
        self._require("dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16")
        for name in ("rows", "max_prompt_tokens", "concurrency", "attempts"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("timeout", 0 < self.timeout < math.inf, "positive and finite")
        self._require("backoff", 0 <= self.backoff < math.inf, "zero or positive, and finite")

    def _require(self, name: str, condition: Any, allowed: str) -> None:
        if not condition:
            raise ValueError(
                f"{type(self).__name__}.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}"
            )


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked."""

    id: str
    """Decides, with the seed and the sample's number, the randomness of the answers."""
    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the chat template. An endpoint has its own template; of the variables it gets `tools` alone."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    finished: bool
    """Whether it ended by itself, not by running out of tokens."""
    tokens: int | None = None
    """Its length; None where the endpoint does not say."""
    retries: int = 0
    """Tries that failed before it."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A question without an answer."""

    reason: str
    retries: int = 0


class Speaker(Protocol):
    """Answers questions."""

    description: Mapping[str, Any]
    """What tells it from others: part of a run's identity and of the provenance of its pairs."""
    parallel: bool
    """Whether several threads should call it."""

    def answer(
        self,
        questions: Sequence[Question],
        *,
        samples: int,
        seed: int,
        sampling: SamplingConfig,
        stop: StopConfig,
        accept: Callable[[str], bool] | None = None,
    ) -> list[list[Reply] | Failure]:
        """`samples` answers to each question; or why there are none.

        Args:
            questions: what is asked.
            samples: answers to each.
            seed: same seed, same question, same answers.
            sampling: how tokens are chosen.
            stop: what ends an answer besides the template's own end.
            accept: whether a text is of use; where asking again may help, it is asked again.
        """
        ...

    def close(self) -> None:
        """Give up what is still being asked, from another thread."""


def open_speaker(config: SpeakerConfig) -> Speaker:
    """The speaker of a configuration.

    Raises:
        ValueError: the folder is no model or has no tokenizer, or the environment has no key.
    """
    if config.url is None:
        return OwnSpeaker(config)
    from plamo2_jax.align.endpoint import EndpointSpeaker

    return EndpointSpeaker(config)


def api_key(config: SpeakerConfig) -> str | None:
    """The endpoint's key.

    Raises:
        ValueError: the environment does not have it, or it is none.
    """
    if config.key_variable is None:
        return None
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {config.key_variable} is empty; it must hold the key of {config.url}"
        )
    # Before a header is made of it: the complaint about that would show the key.
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            f"the environment variable {config.key_variable} is no key: it holds characters other than ASCII letters, digits and signs, "
            "such as a space or an end of line"
        )
    return key


def _is_address(url: str) -> bool:
    """Whether it is an address that requests can be sent to."""
    if not re.fullmatch(r"https?://[!-~]+", url) or set(url) & set("?#@"):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class OwnSpeaker:
    """See `Speaker`: a model of a folder in our own engine.

    Raises:
        ValueError: the folder is no model, or has no tokenizer.
    """

    parallel = False

    def __init__(self, config: SpeakerConfig):
        name = ModelName.parse(config.model)
        loaded = open_model(name.folder, step=name.step, ema=name.ema)
        if loaded.tokenizer is None:
            raise ValueError(f"{name.folder} has no tokenizer.jsonl, without which there is no text to write")
        self._template = ChatTemplate.load(config.template) if config.template else ChatTemplate.of_model(name.folder)
        self._tokenizer, self._config = loaded.tokenizer, config
        model = Plamo2(loaded.config, dtype=jnp.dtype(config.dtype))
        self._generator = Generator(model, cast_matrices(model, loaded.params), loaded.tokenizer)
        self._stop_ids = answer_stop_ids(model, self._template, loaded.tokenizer)
        self.description = {
            "model": config.model,
            "fingerprint": fingerprint(loaded.config, loaded.params),
            "template": hashlib.blake2b(self._template.source.encode(), digest_size=16).hexdigest(),
        }

    def answer(
        self,
        questions: Sequence[Question],
        *,
        samples: int,
        seed: int,
        sampling: SamplingConfig,
        stop: StopConfig,
        accept: Callable[[str], bool] | None = None,
    ) -> list[list[Reply] | Failure]:
        """See `Speaker`. Questions are answered in batches of `rows`, in order; asking again would give the same answer."""
        del accept
        encoded = [self._encode(question) for question in questions]
        found: list[list[Reply] | Failure] = [one if isinstance(one, Failure) else [] for one in encoded]
        places = [i for i, one in enumerate(encoded) if not isinstance(one, Failure)]
        stop = dataclasses.replace(stop, ids=(*self._stop_ids, *(stop.ids or ())))
        step = max(1, self._config.rows // samples)
        for start in range(0, len(places), step):
            batch = places[start : start + step]
            completions = self._generator.generate(
                [encoded[i] for i in batch], sampling=sampling, stop=stop, seed=seed, samples=samples
            )
            for number, completion in enumerate(completions):
                finished = completion.finish_reason != "length"
                reply = Reply(completion.text, finished, len(completion.token_ids))
                found[batch[number // samples]].append(reply)
        return found

    def close(self) -> None:
        """See `Speaker`."""

    def _encode(self, question: Question) -> np.ndarray | Failure:
        try:
            chat = self._template.encode(
                self._tokenizer, question.messages, add_generation_prompt=True, **template_variables(question.variables)
            )
        except ChatTemplateOverrun:
            raise
        except ValueError as error:
            return Failure(f"the chat template refuses it: {error}")
        if not 0 < len(chat.ids) <= self._config.max_prompt_tokens:
            return Failure(f"{len(chat.ids)} tokens, not 1 to max_prompt_tokens={self._config.max_prompt_tokens}")
        return chat.ids


def answer_stop_ids(model: Plamo2, template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer: those that end a document, and what the template ends an answer with."""
    return tuple(sorted({*default_stop_ids(model, tokenizer), *end_ids(template, tokenizer)}))


def end_ids(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The control token that a template ends an answer with: in what it marks as the assistant's, or the first behind it."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        chat = template.encode(tokenizer, messages)
    except ChatTemplateError:
        return ()  # One that wants more than messages, such as languages; ids that end a document still end an answer.
    places = np.flatnonzero(chat.answer)
    behind = chat.ids[places[0] :] if len(places) else chat.ids[:0]
    return tuple(int(id) for id in behind if tokenizer.is_special(int(id)))[:1]
