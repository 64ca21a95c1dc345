"""`/v1/completions`: prompts are encoded, perhaps scored (echo), continued, and written in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from plamo2_jax.serve.completion_requests import CompletionFields
from plamo2_jax.serve.engine_thread import Answer
from plamo2_jax.serve.errors import invalid
from plamo2_jax.serve.logprobs import LegacyLogprobs, TokenScore, join_legacy
from plamo2_jax.serve.output import OutputFormat
from plamo2_jax.serve.samples import finish_fields, head, mean_logprob, token_scores, usage
from plamo2_jax.serve.served_model import ServedModel
from plamo2_jax.serve.work import Work


class Completion:
    """A request to `/v1/completions`, with its prompts encoded.

    Args:
        model: the model of the request.
        fields: the request.
        prompts: ids [t] i32 of each prompt.
        output: what each text must be.

    Raises:
        ApiError: a prompt is empty or has no room for its continuation.
    """

    def __init__(
        self, model: ServedModel, fields: CompletionFields, prompts: Sequence[np.ndarray], output: OutputFormat
    ):
        self._output = output
        self.model, self._fields, self._prompts = model, fields, prompts
        for prompt in prompts:
            if not len(prompt):
                raise invalid("prompt", "a prompt has no tokens: remove add_special_tokens, or give text or token ids")
            model.require_room(prompt, fields.max_tokens, "prompt")
        self.jobs = len(prompts) * fields.best_of
        self.tokens = self.jobs * fields.max_tokens
        self._head = head("cmpl", "text_completion", model, int(time.time()), fields.generation.seed)
        self._legacy: dict[int, LegacyLogprobs] = {}
        self._answer: Answer | None = None

    async def response(self, work: Work) -> dict[str, Any]:
        """Return the whole response."""
        fields, count = self._fields, self._fields.best_of
        choices: list[dict[str, Any]] = [{} for _ in range(self.jobs)]
        async for part in self._parts(work):
            choice = choices[part["index"]]
            if not choice:
                choice.update(part)
                continue
            choice["text"] += part["text"]
            if part["logprobs"] is not None:
                choice["logprobs"] = join_legacy(choice["logprobs"], part["logprobs"])
            choice.update({name: part[name] for name in ("finish_reason", "stop_reason") if name in part})
        if count > fields.generation.n:
            choices = self._best(choices)
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def chunks(self, work: Work) -> AsyncIterator[dict[str, Any]]:
        """Return the chunks of a stream."""
        more = {"usage": None} if self._fields.generation.include_usage else {}
        async for part in self._parts(work):
            yield {**self._head, "choices": [part], **more}
        if more:
            yield {**self._head, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        return usage(sum(map(len, self._prompts)), self._answer, len(self._prompts))

    def _best(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the n samples of each prompt with the highest log-probability per token."""
        n, count = self._fields.generation.n, self._fields.best_of
        kept: list[dict[str, Any]] = []

        def quality(i: int) -> float:
            # Without an answer, only the prompt was scored, and all samples are equal.
            return 0.0 if self._answer is None else mean_logprob(self._answer.handles[i].row.logprobs)

        for first in range(0, len(choices), count):
            order = sorted(range(first, first + count), key=quality, reverse=True)
            kept += [{**choices[i], "index": len(kept) + j} for j, i in enumerate(order[:n])]
        return kept

    async def _parts(self, work: Work) -> AsyncIterator[dict[str, Any]]:
        """Yield parts of choices: index, text, logprobs, finish_reason."""
        fields, wanted = self._fields, self._fields.logprobs
        if fields.echo:
            for i, prompt in enumerate(self._prompts):
                echo = await self._echo(work, i, prompt)
                for sample in range(fields.best_of):
                    yield {"index": i * fields.best_of + sample, **echo}
        if not fields.max_tokens:
            return
        groups = [
            fields.generation.requests(
                prompt,
                fields.max_tokens,
                stop_ids=self.model.document_stop_ids,
                boundaries=self.model.boundaries(prompt),
                salt=self.model.name,
                samples=fields.best_of,
                top_logprobs=wanted or 0,
                output=self._output,
            )
            for prompt in self._prompts
        ]
        self._answer = work.submit(groups, fields.generation.priority)
        async for index, delta in self._answer:
            scores = None if wanted is None else self._logprobs(index).push(token_scores(delta))
            if delta.text or delta.finish_reason or (scores and scores["tokens"]):
                finish = finish_fields(self._answer, delta)
                yield {"index": index, "text": delta.text, "logprobs": scores, **finish}

    async def _echo(self, work: Work, i: int, prompt: np.ndarray) -> dict[str, Any]:
        """Return the part of a choice that repeats its prompt, with the scores of its tokens if they are asked for."""
        fields, tokenizer = self._fields, self.model.tokenizer
        given = fields.prompts[i]
        text = given if isinstance(given, str) else tokenizer.decode(prompt, skip_control=True)
        part = {"text": text, "logprobs": None, "finish_reason": None if fields.max_tokens else "length"}
        if fields.logprobs is None:
            return part
        scores = await work.score(prompt, fields.logprobs)
        tops = zip(scores.top_tokens.tolist(), scores.top_logprobs.tolist(), strict=True)
        rows = [TokenScore(int(prompt[0]), None, ())]
        rows += [
            TokenScore(token, logprob, tuple(zip(*top, strict=True)))
            for token, logprob, top in zip(prompt[1:].tolist(), scores.logprobs.tolist(), tops, strict=True)
        ]
        logprobs = LegacyLogprobs(tokenizer).push(rows)
        for sample in range(fields.best_of):
            self._legacy[i * fields.best_of + sample] = LegacyLogprobs(tokenizer, len(text))
        return {**part, "logprobs": logprobs}

    def _logprobs(self, index: int) -> LegacyLogprobs:
        if index not in self._legacy:
            self._legacy[index] = LegacyLogprobs(self.model.tokenizer)
        return self._legacy[index]
