"""A streaming chat in this process. A prefix cache keeps the conversation, so each turn reads only the new tokens."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import numpy as np

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.generator import Generator as TextGenerator
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.scheduler import Job, Scheduler
from plamo2_jax.engine.speculation import SpeculationConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.models.chat_model import Usage
from plamo2_jax.models.stop_ids import answer_stop_ids
from plamo2_jax.models.streaming import AnswerSettings, Piece
from plamo2_jax.tokenizer.chat_template import ChatTemplate

_Result = TypeVar("_Result")

PREFIX_CACHE_BYTES = 1 << 30
"""Memory budget of the prefix cache. A conversation needs two or three snapshots, 100 MiB each for the 8B model."""

# Seconds after which an answer without new text returns control to the caller.
_PATIENCE = 0.2


class LocalChatStream:
    """A `StreamingChat` in this process.

    The engine runs in a thread of its own. A compilation cannot be interrupted, but the caller can stop waiting for it.

    Args:
        generator: the model, with a tokenizer.
        template: chat template.
        description: name of the model to display.
        max_length: maximum number of tokens of a conversation, limited to `generator.max_length`.
    """

    def __init__(self, generator: TextGenerator, template: ChatTemplate, description: str, *, max_length: int = 8192):
        self.description, self._template = description, template
        self._tokenizer = generator.tokenizer
        self._max_length = min(max_length, generator.max_length)
        self._stop_ids = answer_stop_ids(generator.model, template, self._tokenizer)
        special = map(self._tokenizer.is_special, range(self._tokenizer.vocab_size))
        self._control_ids = np.flatnonzero(np.fromiter(special, bool))
        engine = Engine(
            generator.model,
            generator.params,
            slots=1,
            max_length=self._max_length,
            prefill_size=generator.prefill_size,
            usable=self._tokenizer.vocab_size,
            prefix_cache=PrefixCache(PREFIX_CACHE_BYTES),
            # Drafts are proposed after repeats only. Text without repeats was as fast as without drafts (experiments/serving).
            speculation=SpeculationConfig(),
        )
        # Each round reads one piece of the prompt, so the caller can interrupt a long prompt.
        self._scheduler = Scheduler(engine, self._tokenizer, prefill_budget=generator.prefill_size)
        self._thread = ThreadPoolExecutor(1, "engine")

    def answer(self, messages: Sequence[Mapping[str, Any]], settings: AnswerSettings) -> Iterator[Piece]:
        """Yield the pieces of an answer, as described in `StreamingChat.answer`.

        Raises:
            PlamoError: the template refuses the conversation, the conversation is too long, or the logits are not finite.
        """
        prompt = self._template.encode(self._tokenizer, messages, add_generation_prompt=True).ids
        room = self._max_length - len(prompt)
        if room < 1 or not len(prompt):
            raise PlamoError(
                f"the conversation has {len(prompt):,} tokens: 1 to {self._max_length - 1:,} are allowed, to leave space for an answer"
            )
        stop = settings.stop.shortened(room)
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        boundaries = tuple(int(place) for place in np.flatnonzero(np.isin(prompt, self._control_ids)) if place > 0)
        ids = tuple(sorted({*self._stop_ids, *(stop.ids or ())}))
        request = Request(prompt, settings.sampling, stop, ids, seed, 0, boundaries=boundaries)
        jobs: list[Job] = []
        try:
            yield from self._wait(lambda: jobs.extend(self._scheduler.submit([request])))
            (job,) = jobs
            while not job.done:
                deltas = yield from self._wait(self._scheduler.run_round)
                if job.error is not None:
                    raise PlamoError(job.error)
                text = "".join(delta.text for delta in deltas if delta.job is job)
                yield self._last(job, text) if job.done else Piece(text)
        finally:
            # After the present round, if the caller has left during it.
            self._thread.submit(self._cancel, jobs)

    def _wait(self, function: Callable[[], _Result]) -> Generator[Piece, None, _Result]:
        """Run a function in the thread of the engine, and yield empty pieces until it is done."""
        future = self._thread.submit(function)
        while True:
            try:
                return future.result(_PATIENCE)
            except TimeoutError:
                yield Piece()

    def _cancel(self, jobs: Sequence[Job]) -> None:
        """Free the slot of a job that is not done."""
        for job in jobs:
            if not job.done:
                self._scheduler.cancel(job)
                self._scheduler.run_round()

    def _last(self, job: Any, text: str) -> Piece:
        reason = "length" if job.row.finish_reason == "length" else "stop"
        return Piece(text, reason, Usage(len(job.request.prompt), len(job.row.token_ids), job.cached_tokens))

    def close(self) -> None:
        """Release the model."""
        self._thread.shutdown()
        self._scheduler = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
