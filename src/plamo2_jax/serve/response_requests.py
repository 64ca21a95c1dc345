"""Requests of `/v1/responses`, translated into chat requests. Responses are not stored."""

from __future__ import annotations

import re
from typing import Any

from plamo2_jax.serve.errors import ApiError, invalid
from plamo2_jax.serve.fields import Fields

# Fields that need stored responses, or work that this server does not do.
_REFUSED = ("previous_response_id", "conversation", "background", "prompt")
_IGNORED = ("store", "metadata", "user", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options")
_PASSED_ON = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop",
    "stop_token_ids", "min_tokens", "ignore_eos", "logit_bias", "cache_salt", "priority", "parallel_tool_calls",
    "chat_template_kwargs", "stream",
)  # fmt: skip


def read_response_request(fields: Fields) -> Fields:
    """Return the chat request that a request of `/v1/responses` stands for.

    Raises:
        ApiError: a field is not allowed.
    """
    for name in _REFUSED:
        if fields.get(name):
            raise invalid(
                name, f"{name} is not supported: this server stores no responses. Send the whole conversation in input"
            )
    for name in _IGNORED:
        fields.get(name)
    if fields.choice("truncation", ("disabled", "auto"), "disabled") != "disabled":
        raise fields.refuse("truncation", "disabled")
    body: dict[str, Any] = {name: fields.get(name) for name in _PASSED_ON}
    body["max_tokens"] = fields.integer("max_output_tokens", None, 1, 1 << 31)
    body["messages"] = _messages(fields)
    body["tools"] = _tools(fields)
    body["tool_choice"] = _tool_choice(fields)
    body["response_format"] = _response_format(fields)
    return Fields(body)


def renamed(error: ApiError) -> ApiError:
    """Return an error of the chat request with the names of the fields that the request has."""
    names = {"messages": "input", "max_tokens": "max_output_tokens"}
    message = re.sub(r"\b(max_tokens|messages)\b(?!\[)", lambda found: names[found[0]], error.message)
    param = error.param and names.get(error.param, error.param)
    message, param = (
        each and re.sub(r"(tools\[\d+\]|tool_choice)\.function\.", r"\1.", each) for each in (message, param)
    )
    return ApiError(error.status, message, param=param, code=error.code, headers=error.headers)


def _messages(fields: Fields) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions := fields.string("instructions"):
        messages.append({"role": "system", "content": instructions})
    value = fields.get("input")
    if isinstance(value, str):
        return [*messages, {"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise invalid("input", "input must be a text, or an array of messages, calls and their outputs")
    for i, each in enumerate(value):
        item, where = Fields(each, f"input[{i}]."), f"input[{i}]"
        kind = item.get("type") or "message"
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _content(item, "content", where)})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.string("call_id", ""), "type": "function", "function": function}
            # The calls of an answer follow its text.
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = _content(item, "output", where)
            messages.append({"role": "tool", "content": output, "tool_call_id": item.string("call_id", "")})
        elif kind != "reasoning":
            raise invalid(
                f"{where}.type",
                f"{where}.type is not supported: it must be message, function_call or function_call_output",
            )
    return messages


def _content(item: Fields, name: str, where: str) -> str:
    value = item.get(name)
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) and value else [None]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text", part.get("refusal")), str):
            raise invalid(
                f"{where}.{name}",
                f"{where}.{name} must be a text, or an array of parts of type input_text or output_text",
            )
    return "".join(part.get("text", part.get("refusal")) for part in parts)


def _tools(fields: Fields) -> list[dict[str, Any]] | None:
    values = fields.items("tools", "an array of tools")
    if values is None:
        return None
    tools = []
    for i, value in enumerate(values):
        tool = Fields(value, f"tools[{i}].")
        function = {name: tool.get(name) for name in ("name", "description", "parameters", "strict")}
        tools.append(
            {
                "type": tool.get("type"),
                "function": {name: given for name, given in function.items() if given is not None},
            }
        )
    return tools


def _tool_choice(fields: Fields) -> Any:
    value = fields.get("tool_choice")
    if isinstance(value, dict):
        return {"type": value.get("type"), "function": {"name": value.get("name")}}
    return value


def _response_format(fields: Fields) -> dict[str, Any] | None:
    text = fields.nested("text")
    form = None if text is None else text.nested("format")
    if form is None:
        return None
    schema = {name: form.get(name) for name in ("name", "description", "schema", "strict")}
    return {"type": form.get("type"), "json_schema": schema}
