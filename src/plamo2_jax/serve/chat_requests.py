"""Requests of `/v1/chat/completions`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from plamo2_jax.engine.step import MAX_TOP_LOGPROBS
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.serve.errors import ApiError, invalid
from plamo2_jax.serve.fields import Fields
from plamo2_jax.serve.generation_fields import GenerationFields, read_generation_fields
from plamo2_jax.serve.output import OutputFormat
from plamo2_jax.serve.output_fields import read_output_format
from plamo2_jax.serve.served_model import ServedModel
from plamo2_jax.tokenizer.chat_template import template_variables

ROLES = ("system", "developer", "user", "assistant", "tool")
_REFUSED = ("functions", "function_call", "audio", "web_search_options")
MAX_MESSAGES = 4096


@dataclasses.dataclass(frozen=True)
class ChatFields:
    """A request to answer a conversation."""

    messages: tuple[Mapping[str, Any], ...]
    """As the chat template gets them: `content` is text, arguments of tool calls are objects."""
    variables: Mapping[str, Any]
    """Variables of the chat template."""
    max_tokens: int | None
    """Maximum number of new tokens. None: the rest of the context."""
    logprobs: bool
    top_logprobs: int
    output: OutputFormat
    generation: GenerationFields


def read_chat(fields: Fields, model: ServedModel) -> ChatFields:
    """Read a request.

    Args:
        fields: the request.
        model: the model of the request.

    Raises:
        ApiError: a field has a wrong type or value.
    """
    for name in _REFUSED:
        if fields.get(name):
            raise invalid(name, f"{name} is not supported: remove it")
    if fields.get("modalities") not in (None, ["text"]):
        raise fields.refuse("modalities", '["text"]')
    generation = read_generation_fields(fields, model.tokenizer.vocab_size)
    logprobs = fields.boolean("logprobs", False)
    top_logprobs = fields.integer("top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    if top_logprobs and not logprobs:
        raise fields.refuse("top_logprobs", "0 unless logprobs is true")
    newer = fields.integer("max_completion_tokens", None, 1, 1 << 31)
    older = fields.integer("max_tokens", None, 1, 1 << 31)
    output = read_output_format(fields, model)
    variables = template_variables(fields.mapping("chat_template_kwargs"))
    return ChatFields(
        _messages(fields),
        {**variables, **output.variables},
        older if newer is None else newer,
        logprobs,
        top_logprobs,
        output,
        generation,
    )


def _messages(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    value = fields.items("messages", "an array of messages")
    if not value or len(value) > MAX_MESSAGES:
        raise invalid("messages", f"messages must be an array of 1 to {MAX_MESSAGES} objects with role and content")
    return tuple(_message(each, f"messages[{i}]") for i, each in enumerate(value))


def _message(value: Any, where: str) -> dict[str, Any]:
    message = Fields(value, f"{where}.")
    role = message.choice("role", ROLES)
    if role is None:
        raise invalid(f"{where}.role", f"{where}.role is missing: it must be one of {', '.join(ROLES)}")
    calls = _tool_calls(message, where) if role == "assistant" else []
    content = _content(message, where, required=not calls)
    result = {"role": "system" if role == "developer" else role, "content": content}
    if name := message.string("name"):
        result["name"] = name
    if calls:
        result["tool_calls"] = calls
    if role == "tool" and (call := message.string("tool_call_id")):
        result["tool_call_id"] = call
    return result


def _content(message: Fields, where: str, *, required: bool) -> str:
    """Return the text of a message, whose parts are joined."""
    value = message.get("content")
    if isinstance(value, str):
        return value
    if value is None and not required:
        return ""
    if not isinstance(value, list) or not value:
        raise _refused_content(where)
    texts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind == "text" else part.get("refusal") if kind == "refusal" else None
        if not isinstance(text, str):
            raise invalid(
                f"{where}.content[{i}]",
                f"{where}.content[{i}] is not supported: it must be a part of type text, with text",
            )
        texts.append(text)
    return "".join(texts)


def _refused_content(where: str) -> ApiError:
    return invalid(f"{where}.content", f"{where}.content must be a string or an array of parts of type text")


def _tool_calls(message: Fields, where: str) -> list[dict[str, Any]]:
    calls = []
    for i, value in enumerate(message.items("tool_calls", "an array of calls") or []):
        call = Fields(value, f"{where}.tool_calls[{i}].")
        function = call.nested("function")
        if call.choice("type", ("function",), "function") is None or function is None or not function.string("name"):
            raise invalid(
                f"{where}.tool_calls[{i}]", f"{where}.tool_calls[{i}] must have function, with name and arguments"
            )
        arguments = function.string("arguments", "{}")
        # What is not JSON is shown to the model as the text that it wrote.
        with contextlib.suppress(PlamoError):
            arguments = parse_json(arguments, "arguments")
        calls.append(
            {
                "id": call.string("id", ""),
                "type": "function",
                "function": {"name": function.string("name"), "arguments": arguments},
            }
        )
    return calls
