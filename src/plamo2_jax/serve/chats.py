"""`/v1/chat/completions`: a conversation is written into the chat template, answered, and written in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from plamo2_jax.engine.scheduler import Delta
from plamo2_jax.serve.chat_requests import ChatFields
from plamo2_jax.serve.engine_thread import Answer
from plamo2_jax.serve.logprobs import chat_logprobs
from plamo2_jax.serve.output import MessageDelta
from plamo2_jax.serve.samples import finish_fields, head, token_scores, usage
from plamo2_jax.serve.served_model import ServedModel
from plamo2_jax.serve.work import Work


class Chat:
    """A request to `/v1/chat/completions`, with its prompt encoded.

    Args:
        model: the model of the request.
        fields: the request.
        prompt: ids [t] i32 of the conversation, up to where the answer begins.

    Raises:
        ApiError: the answer has no room.
    """

    def __init__(self, model: ServedModel, fields: ChatFields, prompt: np.ndarray):
        self.model, self._fields, self._prompt = model, fields, prompt
        self._max_tokens = model.require_room(prompt, fields.max_tokens, "messages")
        self.jobs = fields.generation.n
        self.tokens = self.jobs * self._max_tokens
        self._created = int(time.time())
        self._answer: Answer | None = None

    async def response(self, work: Work) -> dict[str, Any]:
        """Return the whole response."""
        choices: list[dict[str, Any]] = []
        for index in range(self.jobs):
            message = {"role": "assistant", "content": None, "refusal": None}
            logprobs = {"content": [], "refusal": None} if self._fields.logprobs else None
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": None})
        async for part in self.parts(work):
            choice = choices[part.pop("index")]
            _add(choice["message"], part.pop("delta"))
            more = part.pop("logprobs")
            if more is not None:
                choice["logprobs"]["content"] += more["content"]
            choice.update(part)
        for choice in choices:
            message = choice["message"]
            if message["content"] is None and "tool_calls" not in message:
                message["content"] = ""
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage()}

    async def chunks(self, work: Work) -> AsyncIterator[dict[str, Any]]:
        """Return the chunks of a stream."""
        start = self._head("chat.completion.chunk")
        more = {"usage": None} if self._fields.generation.include_usage else {}

        def chunk(part: dict[str, Any]) -> dict[str, Any]:
            return {**start, "choices": [part], **more}

        for index in range(self.jobs):
            first = {"role": "assistant", "content": ""}
            yield chunk({"index": index, "delta": first, "logprobs": None, "finish_reason": None})
        async for part in self.parts(work):
            yield chunk(part)
        if more:
            yield {**start, "choices": [], "usage": self.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return head("chatcmpl", kind, self.model, self._created, self._fields.generation.seed)

    def usage(self) -> dict[str, Any]:
        """Return the usage, once the answer has ended."""
        return usage(len(self._prompt), self._answer, 1)

    async def parts(self, work: Work) -> AsyncIterator[dict[str, Any]]:
        """Yield parts of choices: index, delta, logprobs, finish_reason."""
        fields, model = self._fields, self.model
        parsers = [fields.output.parser() for _ in range(self.jobs)]
        requests = fields.generation.requests(
            self._prompt,
            self._max_tokens,
            stop_ids=model.answer_stop_ids,
            boundaries=model.boundaries(self._prompt),
            salt=model.name,
            top_logprobs=fields.top_logprobs,
            output=fields.output,
        )
        self._answer = work.submit([requests], fields.generation.priority)
        async for index, delta in self._answer:
            deltas = parsers[index].push(delta.text)
            finish = finish_fields(self._answer, delta)
            if finish["finish_reason"] is not None:
                rest, reason = parsers[index].finish(finish["finish_reason"])
                deltas, finish = [*deltas, *rest], {**finish, "finish_reason": reason}
            logprobs = self._logprobs(delta)
            if not deltas and (logprobs or finish["finish_reason"]):
                deltas = [{}]
            for i, each in enumerate(deltas):
                last = finish if i == len(deltas) - 1 else {"finish_reason": None}
                yield {"index": index, "delta": each, "logprobs": logprobs if i == 0 else None, **last}

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        """Return the scores of a delta's tokens but the one that ended the text; None if they are not asked for."""
        scores = token_scores(delta) if self._fields.logprobs else []
        if delta.finish_reason == "stop_id":
            scores = scores[:-1]
        return {"content": chat_logprobs(self.model.tokenizer, scores), "refusal": None} if scores else None


def _add(message: dict[str, Any], delta: MessageDelta) -> None:
    """Add a part of a stream to a whole message."""
    for name, value in delta.items():
        if name != "tool_calls":
            message[name] = (message.get(name) or "") + value
            continue
        calls = message.setdefault("tool_calls", [])
        for part in value:
            if part["index"] == len(calls):
                calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call, function = calls[part["index"]], part.get("function", {})
            call["id"] = part.get("id", call["id"])
            for field in ("name", "arguments"):
                call["function"][field] += function.get(field, "")
