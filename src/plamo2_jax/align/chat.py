"""Conversations: read from JSON lines, checked, and made into ids with a mask of what is trained on.

A record is one of
    messages      {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    Alpaca        {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}
    ShareGPT      {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], "system": "..."}
told apart by their fields. Whatever else a record holds are variables of the chat template ("tools", "source_language").
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plamo2_jax.data.documents import BadRecord, ReadReport, UnreadableRecord
from plamo2_jax.data.readers import format_of, read_array_record, read_jsonl
from plamo2_jax.data.sources import find_files
from plamo2_jax.tokenizer.chat_template import ChatTemplate, ChatTemplateError, EncodedChat
from plamo2_jax.tokenizer.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}

Truncate = Literal["last", "first", "end", "refuse"]
"""What becomes of a conversation that is too long. last: its last messages go, until it fits and ends with an answer. first: its
first exchanges go, but not the system message. end: messages go as with last, but an only answer that is too long itself is cut,
between two characters, and has no end. refuse: it is left out. A conversation that no rule makes fit is left out."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages, and what else the template may want to know."""

    messages: tuple[Mapping[str, Any], ...]
    """Objects with `role` (one of ROLES) and `content`."""
    place: str
    """File and line."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the template."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation as it is trained on: token i is predicted from those before it."""

    ids: np.ndarray
    """[n] int32."""
    trained: np.ndarray
    """[n] bool, the assistant's tokens."""


def read_records(spec: str | Path, report: ReadReport) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`(place, fields)` of every JSON object in a file, a folder or a pattern of JSON lines or ArrayRecord.

    Raises:
        ValueError: there is no such file, or it is damaged as a whole.
        TooManyBadRecordsError: more lines are not JSON objects than `report` allows.
    """
    for file in find_files(str(spec)):
        kind = format_of(file)
        if kind not in ("jsonl", "arrayrecord"):
            raise ValueError(f"{file} is not allowed here: it must be JSON lines (.jsonl) or ArrayRecord")
        for where, fields in (read_jsonl if kind == "jsonl" else read_array_record)(file):
            if isinstance(fields, UnreadableRecord):
                report.count_bad(BadRecord(where, fields.reason, fields.detail))
            else:
                yield where, fields
        report.files += 1


def read_conversations(spec: str | Path, report: ReadReport) -> Iterator[Conversation]:
    """The conversations of a file, a folder or a pattern. Bad lines are counted in `report`, by reason, with file and line.

    Raises:
        ValueError: there is no such file, or it is damaged as a whole.
        TooManyBadRecordsError: more lines are bad than `report` allows; the message names one.
    """
    for where, fields in read_records(spec, report):
        try:
            conversation = to_conversation(fields, where)
        except UnreadableRecord as error:
            report.count_bad(BadRecord(where, error.reason, error.detail))
            continue
        report.count_good()
        yield conversation
    report.judge()


def to_conversation(fields: Mapping[str, Any], where: str) -> Conversation:
    """The conversation of a record in one of the three forms.

    Raises:
        UnreadableRecord: it is none, or nothing in it could be trained on.
    """
    if "messages" in fields:
        messages, used = fields["messages"], {"messages"}
    elif "conversations" in fields:
        messages, used = _sharegpt(fields), {"conversations", "system"}
    elif "instruction" in fields:
        messages, used = _alpaca(fields), {"instruction", "input", "output", "system", "history"}
    else:
        raise UnreadableRecord("no conversation", "none of the fields messages, conversations and instruction")
    messages = check_messages(messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise UnreadableRecord("no answer", "no message is of the assistant")
    variables = {name: value for name, value in fields.items() if name not in used}
    return Conversation(messages, where, variables)


def check_messages(messages: Any) -> tuple[Mapping[str, Any], ...]:
    """Messages as they are, once they are known to be some.

    Raises:
        UnreadableRecord: they are no list of objects with a known role and text; the detail says which message.
    """
    if not isinstance(messages, list) or not messages:
        raise UnreadableRecord("no messages", "messages must be a list that is not empty")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise UnreadableRecord("message not an object", f"message {number}")
        role = message.get("role")
        if role not in ROLES:
            raise UnreadableRecord(
                "unknown role", f"message {number} has {role!r}; it must be one of {', '.join(ROLES)}"
            )
        if role == "system" and number > 1:
            raise UnreadableRecord("system message not first", f"message {number}")
        content = message.get("content")
        if content is None and role == "assistant" and message.get("tool_calls"):
            continue
        if not isinstance(content, str):
            raise UnreadableRecord("content not a string", f"message {number} of {role}")
        if not content.strip() and not (role == "assistant" and message.get("tool_calls")):
            raise UnreadableRecord("empty message", f"message {number} of {role}")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise UnreadableRecord("lone surrogate", f"message {number}, character {error.start}") from None
    if messages[0]["role"] == "assistant":
        raise UnreadableRecord("answer without a question", "message 1 is of the assistant")
    return tuple(messages)


def encode_conversation(
    conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer, limit: int, truncate: Truncate
) -> tuple[Example | None, str]:
    """A conversation as at most `limit` ids, and what was done to it: "whole", "truncated" or "too long" (then there is none).

    Raises:
        UnreadableRecord: the template refuses it.
    """
    messages = list(conversation.messages)
    example = _encode(conversation, messages, template, tokenizer)
    if len(example.ids) <= limit:
        return example, "whole"
    if truncate == "refuse":
        return None, "too long"
    while (shorter := _drop(messages, truncate)) is not None:
        messages = shorter
        example = _encode(conversation, messages, template, tokenizer)
        if len(example.ids) <= limit:
            return example, "truncated"
    if truncate == "end":
        end = _character_boundary(example.ids, limit, tokenizer)
        if example.trained[:end].any():
            return Example(example.ids[:end], example.trained[:end]), "truncated"
    return None, "too long"


def encode_all(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    limit: int,
    truncate: Truncate,
    report: ReadReport,
) -> tuple[list[Example], Counter[str]]:
    """All conversations that fit, in order, and how many were whole, truncated and too long.

    Raises:
        ChatTemplateError: the template does not mark what the assistant says.
        TooManyBadRecordsError: the template refuses more of them than `report` allows.
    """
    require_marks(template)
    examples, counts = [], Counter()
    for conversation in conversations:
        try:
            example, what = encode_conversation(conversation, template, tokenizer, limit, truncate)
        except UnreadableRecord as error:
            report.count_bad(BadRecord(conversation.place, error.reason, error.detail))
            continue
        counts[what] += 1
        if example is not None:
            examples.append(example)
    report.judge()
    return examples, counts


def require_marks(template: ChatTemplate) -> None:
    """Raise ChatTemplateError unless the template says which text is the assistant's."""
    if not template.marks_answers:
        raise ChatTemplateError(
            f"{template.name} does not say which text is the assistant's: put it between {{% generation %}} and {{% endgeneration %}}"
        )


def encode_chat(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> EncodedChat:
    """What a template makes of a conversation.

    Raises:
        UnreadableRecord: the template refuses it.
    """
    try:
        return template.encode(tokenizer, conversation.messages, **template_variables(conversation.variables))
    except ChatTemplateError as error:
        raise UnreadableRecord("refused by the chat template", str(error)) from None
    except ValueError as error:
        raise UnreadableRecord("not text", str(error)) from None


def _encode(
    conversation: Conversation, messages: Sequence[Mapping[str, Any]], template: ChatTemplate, tokenizer: Tokenizer
) -> Example:
    chat = encode_chat(dataclasses.replace(conversation, messages=tuple(messages)), template, tokenizer)
    if not chat.answer.any():
        raise UnreadableRecord("no answer", "the chat template marks nothing as the assistant's")
    return Example(chat.ids, chat.answer > 0)


def template_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are names, and not ours to set."""
    taken = ("messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token", "tokenizer")
    return {name: value for name, value in variables.items() if name.isidentifier() and name not in taken}


def _drop(messages: list[Mapping[str, Any]], truncate: Truncate) -> list[Mapping[str, Any]] | None:
    """Fewer messages of the same conversation, an answer among them; None where there are none."""
    if truncate == "first":
        head = [message for message in messages[:1] if message["role"] == "system"]
        rest = messages[len(head) + 1 :]
        # A conversation begins with a question.
        while rest and rest[0]["role"] != "user":
            rest = rest[1:]
        shorter = [*head, *rest]
    else:
        shorter = messages[:-1]
        while shorter and shorter[-1]["role"] != "assistant":
            shorter = shorter[:-1]
    return shorter if any(message["role"] == "assistant" for message in shorter) else None


def _character_boundary(ids: np.ndarray, end: int, tokenizer: Tokenizer) -> int:
    """The last place up to `end` at which no character is cut: characters outside the vocabulary are several byte tokens."""
    while end > 0 and end < len(ids) and tokenizer.token_bytes(int(ids[end]))[0] & 0xC0 == 0x80:
        end -= 1
    return end


def _alpaca(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    instruction, output = fields["instruction"], fields.get("output")
    for name, value in (("instruction", instruction), ("output", output)):
        if not isinstance(value, str) or not value.strip():
            raise UnreadableRecord("empty message", f"the field {name} must be text")
    messages = _system(fields)
    for turn in fields.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UnreadableRecord("bad history", "it must be a list of pairs of question and answer")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    extra = fields.get("input") or ""
    if not isinstance(extra, str):
        raise UnreadableRecord("content not a string", "the field input")
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": output}]


def _sharegpt(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = fields["conversations"]
    if not isinstance(turns, list):
        raise UnreadableRecord("no messages", "conversations must be a list")
    messages = _system(fields)
    for number, turn in enumerate(turns, start=1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in _SHAREGPT_ROLES:
            allowed = ", ".join(_SHAREGPT_ROLES)
            raise UnreadableRecord("unknown role", f"message {number} is from {speaker!r}; it must be one of {allowed}")
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return messages


def _system(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
