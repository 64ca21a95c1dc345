"""`/v1/responses`: a chat, written as items and events of OpenAI's Responses API."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

from plamo2_jax.serve.chats import Chat
from plamo2_jax.serve.fields import Fields
from plamo2_jax.serve.output import MessageDelta
from plamo2_jax.serve.work import Work

_ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "tool_choice", "tools", "top_p", "text")
_DEFAULTS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "text": {"format": {"type": "text"}},
    "metadata": {},
}


class ResponseCall:
    """A request to `/v1/responses`, with the interface of `Chat`.

    Args:
        chat: the chat that it stands for, of one sample.
        fields: the request.
        seed: seed of the sample, for the response.
        created: seconds since 1970.
    """

    def __init__(self, chat: Chat, fields: Fields, seed: int, created: int):
        self.model, self.jobs, self.tokens, self._chat = chat.model, chat.jobs, chat.tokens, chat
        parallel = fields.get("parallel_tool_calls")
        echoed = {name: fields.get(name) for name in _ECHOED}
        self._response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": chat.model.name,
            "output": [],
            "parallel_tool_calls": True if parallel is None else parallel,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            # Not in OpenAI's API, see `samples.head`.
            "seed": seed,
            **{name: _DEFAULTS.get(name) if value is None else value for name, value in echoed.items()},
        }

    async def response(self, work: Work) -> dict[str, Any]:
        """Return the whole response."""
        async for _ in self.chunks(work):
            pass
        return self._response

    async def chunks(self, work: Work) -> AsyncIterator[dict[str, Any]]:
        """Return the events of a stream."""
        number = 0
        async for event in self._events(work):
            yield {**event, "sequence_number": number}
            number += 1

    async def _events(self, work: Work) -> AsyncIterator[dict[str, Any]]:
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "response": self._snapshot()}
        output, finish = _Output(), {}
        async for part in self._chat.parts(work):
            for event in output.push(part["delta"]):
                yield event
            if part["finish_reason"] is not None:
                finish = part
        reason = finish.get("finish_reason")
        complete = reason in ("stop", "tool_calls")
        for event in output.close("completed" if complete else "incomplete"):
            yield event
        status = "completed" if complete else "incomplete" if reason == "length" else "failed"
        response = self._response
        response.update(status=status, output=output.items, usage=self._usage())
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "failed":
            why = f"the answer ended before its time: {finish.get('stop_reason')}"
            response["error"] = {"code": "server_error", "message": why}
        yield {"type": f"response.{status}", "response": self._snapshot()}

    def _snapshot(self) -> dict[str, Any]:
        return {**self._response, "output": list(self._response["output"])}

    def _usage(self) -> dict[str, Any]:
        usage = self._chat.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


class _Output:
    """The items of a response, as parts of a message arrive.

    Attributes:
        items: those that are complete.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._id, self._text = "", ""

    def push(self, delta: MessageDelta) -> Iterator[dict[str, Any]]:
        """Take a part; yield its events."""
        if delta.get("content"):
            yield from self._add_text(delta["content"])
        for call in delta.get("tool_calls", []):
            yield from self.close("completed")
            yield from self._add_call(call)

    def close(self, status: str) -> Iterator[dict[str, Any]]:
        """End the text, if it is open; yield its events."""
        if not self._id:
            return
        part, item = _part(self._text), _message(self._id, status, [_part(self._text)])
        yield {"type": "response.output_text.done", **self._place(), "text": self._text, "logprobs": []}
        yield {"type": "response.content_part.done", **self._place(), "part": part}
        yield self._done(item)
        self._id, self._text = "", ""

    def _add_text(self, text: str) -> Iterator[dict[str, Any]]:
        if not self._id:
            self._id = f"msg_{secrets.token_hex(16)}"
            yield self._added(_message(self._id, "in_progress", []))
            yield {"type": "response.content_part.added", **self._place(), "part": _part("")}
        self._text += text
        yield {"type": "response.output_text.delta", **self._place(), "delta": text, "logprobs": []}

    def _add_call(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        item = {"id": f"fc_{secrets.token_hex(16)}", "type": "function_call", "call_id": call["id"], "name": name}
        place = {"item_id": item["id"], "output_index": len(self.items)}
        yield self._added({**item, "arguments": "", "status": "in_progress"})
        yield {"type": "response.function_call_arguments.delta", **place, "delta": arguments}
        yield {"type": "response.function_call_arguments.done", **place, "name": name, "arguments": arguments}
        yield self._done({**item, "arguments": arguments, "status": "completed"})

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": len(self.items), "content_index": 0}

    def _added(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "response.output_item.added", "output_index": len(self.items), "item": item}

    def _done(self, item: dict[str, Any]) -> dict[str, Any]:
        self.items.append(item)
        return {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}
