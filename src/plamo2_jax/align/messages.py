"""Conversion of the messages of public data sets to one form.

A message has a speaker (`role` or `from`) and a text (`content` or `value`, a string or a list of text parts). The result has `role`, one
of ROLES, and `content`, a string. A message of the assistant may have `tool_calls`, and it has `train` = False if it is not trained on.
Other fields are kept for the chat template. Null fields count as absent, because tables have every field in every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plamo2_jax.data.documents import UnreadableRecord
from plamo2_jax.json_input import parse_json
from plamo2_jax.validation import shown

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS: Mapping[str, str] = {
    **{role: role for role in ROLES},
    "developer": "system",
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response", "tool_result", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
"""Role by name of the speaker, in lower case and with underscores. The texts of `function_call` and `tool_call` are tool calls."""
CALLERS = ("function_call", "tool_call")
TRAIN_MARKS = ("weight", "loss_weight", "loss_mask", "loss", "train", "training", "trainable", "train_on_turn")
"""Fields that say whether a message is trained on: true or 1, false or 0. `masked` means the opposite."""
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", "masked", "train_detail", *TRAIN_MARKS}
TEXT_PARTS = ("text", "input_text", "output_text")
"""Allowed types of parts if `content` is a list."""


def read_messages(value: Any, field: str = "messages") -> list[Message]:
    """Return messages in one form.

    Args:
        value: a list of messages, one message, or JSON text of either.
        field: name of the field in error messages.

    Raises:
        UnreadableRecord: the value is something else, or a message has no known speaker or no text; the detail names the message.
    """
    value = decoded(value, field)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise UnreadableRecord("no messages", f"{field} must be a list of messages that is not empty")
    messages: list[Message] = []
    calling = False
    for number, given in enumerate(value, start=1):
        message, calls = _read_message(given, number)
        if calls and calling and message.get("train") == messages[-1].get("train"):
            # These speakers send one message per call; consecutive calls are one answer.
            messages[-1]["tool_calls"] += message["tool_calls"]
        else:
            messages.append(message)
        calling = calls
    # Remove a system message without text.
    if len(messages) > 1 and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        del messages[0]
    return messages


def check_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Check that messages of `read_messages` are a conversation, and return them.

    Raises:
        UnreadableRecord: a message is empty or has a lone surrogate, a system message is not the first, or the first message is an answer.
    """
    for number, message in enumerate(messages, start=1):
        role, content = message["role"], message["content"]
        if role == "system" and number > 1:
            raise UnreadableRecord("system message not first", f"message {number}")
        # The answer of a tool may be empty.
        if not content.strip() and role != "tool" and not message.get("tool_calls"):
            raise UnreadableRecord("empty message", f"message {number} of {role}")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise UnreadableRecord("lone surrogate", f"message {number}, character {error.start}") from None
    if messages[0]["role"] == "assistant":
        raise UnreadableRecord("answer without a question", "message 1 is from the assistant: it must be from the user")
    return tuple(messages)


def is_trained(message: Mapping[str, Any]) -> bool:
    """Return whether a message is an answer that is trained on."""
    return message["role"] == "assistant" and message.get("train", True)


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return definitions of tools as `{"type": "function", "function": {"name", "description", "parameters", ...}}`, or None.

    Args:
        value: a list of definitions in this form or flat, `{"name", "description", "parameters"}`. The list, a definition and its
            parameters may each be JSON text.

    Raises:
        UnreadableRecord: the value is something else.
    """
    tools = []
    for number, given in enumerate(_listed(value, "tools"), start=1):
        where = f"tool {number}"
        function = _function(given, where)
        _require_name(function, where)
        function = {name: item for name, item in function.items() if item is not None and name != "type"}
        if isinstance(function.get("parameters"), str):
            function["parameters"] = decoded(function["parameters"], f"parameters of {where}", "an object")
        first = {name: function.pop(name) for name in ("name", "description", "parameters") if name in function}
        tools.append({"type": "function", "function": {**first, **function}})
    return tools or None


def decoded(value: Any, field: str, wanted: str | None = None) -> Any:
    """Return a value, after parsing it if it is JSON text; None if the text is empty.

    Raises:
        UnreadableRecord: a text is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value, field)
    except ValueError:
        wanted = wanted or "a list"
        detail = f"{field} is the text {shown(value)}; it must be {wanted}, or JSON text of one"
        raise UnreadableRecord("text that is not JSON", detail) from None


def one_of(fields: Mapping[str, Any], names: Sequence[str], what: str) -> tuple[str | None, Any]:
    """Return name and value of the first of several fields that is not null; `(None, None)` if all are null.

    Raises:
        UnreadableRecord: several fields have different values.
    """
    found = {name: fields[name] for name in names if fields.get(name) is not None}
    name, *others = found or (None,)
    for other in others:
        if found[other] != found[name]:
            raise UnreadableRecord("two values", f"{what}: {name} and {other} are different; remove one of them")
    return name, found.get(name)


def _read_message(given: Any, number: int) -> tuple[Message, bool]:
    """Return a message in the common form, and whether its text is a tool call."""
    if not isinstance(given, dict):
        raise UnreadableRecord("message not an object", f"message {number} is {shown(given)}")
    fields = {name: value for name, value in given.items() if value is not None}
    where = f"message {number}"
    said_by = _speaker(fields, number)
    role = SPEAKERS[said_by]
    _, content = one_of(fields, ("content", "value"), f"text in {where}")
    content = _text(content, f"{where} of {role}")
    calls = _calls(fields, where)
    if said_by in CALLERS:
        calls = [*_called_in(content, where), *calls]
        content = ""
    if calls and role != "assistant":
        raise UnreadableRecord("tool calls not the assistant's", f"{where} of {role}; remove its tool_calls")
    if content is None:
        if not calls and role in ("user", "assistant"):
            raise UnreadableRecord("content not a string", f"{where} of {role} has no content: add the field content")
        content = ""
    trained = _mark(fields, where)
    message = {"role": role, "content": content}
    message |= {name: value for name, value in fields.items() if name not in _READ}
    if calls:
        message["tool_calls"] = calls
    if not trained:
        message["train"] = False
    return message, said_by in CALLERS


def _speaker(fields: Mapping[str, Any], number: int) -> str:
    """Return the speaker of a message, a key of SPEAKERS."""
    field, speaker = one_of(fields, ("role", "from"), f"speaker in message {number}")
    name = speaker.lower().replace("-", "_").replace(" ", "_") if isinstance(speaker, str) else None
    if name == "function" and field == "role":
        name = "tool"
    if name in SPEAKERS:
        return name
    said = "has no role" if field is None else f"{'is from' if field == 'from' else 'has'} {shown(speaker)}"
    allowed = f"{', '.join(ROLES)}, or another name for one of them, such as human and gpt"
    raise UnreadableRecord("unknown role", f"message {number} {said}; it must be one of {allowed}")


def _text(content: Any, where: str) -> str | None:
    """Return the content as one string, or None without content."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnreadableRecord(
            "content not a string", f"{where} holds {shown(content)}; it must be a text or a list of text parts"
        )
    texts = []
    for number, part in enumerate(content, start=1):
        kind = part.get("type") or "text" if isinstance(part, dict) else shown(part)
        if kind not in TEXT_PARTS:
            raise UnreadableRecord("part that is not text", f"{where}, part {number}: {shown(kind)}; only text is read")
        _, text = one_of(part, ("text", "value"), f"text in part {number} of {where}")
        if not isinstance(text, str):
            raise UnreadableRecord("content not a string", f"{where}, part {number} has no text")
        texts.append(text)
    return "".join(texts)


def _calls(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the tool calls in the fields `tool_calls` and `function_call` of a message."""
    calls = [
        _call(call, f"tool_calls of {where}, call {number}")
        for number, call in enumerate(_listed(fields.get("tool_calls"), f"tool_calls of {where}"), start=1)
    ]
    single = decoded(fields.get("function_call"), f"function_call of {where}", "an object")
    return [*calls, _call(single, f"function_call of {where}")] if single else calls


def _called_in(content: str | None, where: str) -> list[dict[str, Any]]:
    """Return the tool calls in the text of a message: JSON of one call or of a list."""
    called = decoded(content, f"the call of {where}", "an object")
    called = called if isinstance(called, list) else [called]
    if not called:
        raise UnreadableRecord("no tool call", where)
    return [_call(call, f"{where}, call {number}") for number, call in enumerate(called, start=1)]


def _call(given: Any, where: str) -> dict[str, Any]:
    """Return a tool call in one form: `{"type": "function", "function": {"name", "arguments"}}`, and `id` if it has one."""
    function = _function(given, where)
    name = _require_name(function, where)
    field, arguments = one_of(function, ("arguments", "parameters"), f"arguments in {where}")
    arguments = decoded(arguments, f"{field} of {where}", "an object")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise UnreadableRecord(
            "arguments not an object", f"{where}: {shown(arguments)}; they must be an object, or JSON text of one"
        )
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    identity = decoded(given, where).get("id")
    return call if identity is None else {**call, "id": identity}


def _function(given: Any, where: str) -> dict[str, Any]:
    """Return the value of `function` in a call or definition, or the whole object if it is flat."""
    outer = decoded(given, where, "an object")
    if isinstance(outer, dict):
        kind = outer.get("type")
        if kind not in (None, "function"):
            raise UnreadableRecord("not a function", f"{where} is of type {shown(kind)}; only function is read")
        inner = decoded(outer.get("function"), f"function of {where}", "an object")
        if inner is None:
            return outer
        if isinstance(inner, dict):
            return inner
    raise UnreadableRecord("tool not an object", f"{where} is {shown(given)}; it must be an object with a name")


def _require_name(function: Mapping[str, Any], where: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UnreadableRecord("tool without a name", f"{where}: name is {shown(name)}; it must be a text")
    return name


def _listed(value: Any, field: str) -> list[Any]:
    """Return a list, or the list in JSON text. Empty values are the empty list."""
    value = decoded(value, field)
    if value is None or value == {}:
        return []
    if not isinstance(value, list):
        raise UnreadableRecord("not a list", f"{field} is {shown(value)}; it must be a list, or JSON text of one")
    return value


def _mark(fields: Mapping[str, Any], where: str) -> bool:
    """Return whether a message is trained on. Without a mark it is."""
    if fields.get("train_detail"):
        raise UnreadableRecord(
            "part of a message marked", f"{where} has train_detail; only whole messages can be excluded from training"
        )
    said = {}
    for name in fields:
        if name in TRAIN_MARKS or name == "masked":
            value = fields[name]
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                detail = f"{where} has {name}={shown(value)}; it must be true or false, 1 or 0"
                raise UnreadableRecord("unknown mark", detail)
            said[name] = bool(value) != (name == "masked")
    if len(set(said.values())) > 1:
        raise UnreadableRecord("marks that disagree", f"{where} has {', '.join(said)}; keep one of them")
    return all(said.values())
