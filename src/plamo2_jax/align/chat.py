"""Conversations: read from files, checked, and made into ids with a mask of what is trained on.

`forms` and `messages` define the forms of a record. All other fields of a record become variables of the chat template.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from plamo2_jax.align.forms import conversation_messages, further_fields, present
from plamo2_jax.align.messages import check_messages, is_trained
from plamo2_jax.data import readers
from plamo2_jax.data.documents import ReadReport, UnreadableRecord
from plamo2_jax.data.files import find_files, format_of
from plamo2_jax.tokenizer.chat_template import (
    ChatTemplate,
    ChatTemplateError,
    ChatTemplateOverrun,
    EncodedChat,
    template_variables,
)
from plamo2_jax.tokenizer.tokenizer import Tokenizer

Truncate = Literal["last", "first", "end", "refuse"]
"""What becomes of a conversation that is too long. last: its last messages go, until it fits and ends with an answer. first: its
first exchanges go, but not the system message. end: messages go as with last, but an only answer that is too long itself is cut,
between two characters, and has no end. refuse: it is left out. A conversation that no rule makes fit is left out."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages, and what else the template may want to know."""

    messages: tuple[Mapping[str, Any], ...]
    """As `messages.check_messages` returns them."""
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
    """Yield `(place, fields)` of each record in a file, a folder or a pattern, as `data.readers.read_records`.

    What is null in a row of a Parquet file is left out, in its structs too: they have every field in every row.
    """
    for file in find_files(spec, report):
        nulls = format_of(file) != "parquet"
        for where, fields in readers.read_records(file, report):
            yield where, fields if nulls else _without_nulls(fields)


def convert_records(
    spec: str | Path, report: ReadReport, convert: Callable[[Mapping[str, Any], str], T]
) -> Iterator[T]:
    """Convert the records of a file, a folder or a pattern.

    Args:
        spec: the file, folder or pattern.
        report: counts good records, and bad ones by reason with file and line.
        convert: maps the fields of a record and its place to a value. It raises UnreadableRecord for a bad record.

    Raises:
        ValueError: the file does not exist, or it is damaged as a whole.
        TooManyBadRecordsError: more records are bad than `report` allows; the message names one.
    """
    for where, fields in read_records(spec, report):
        try:
            value = convert(fields, where)
        except UnreadableRecord as error:
            report.count_bad(where, error)
            continue
        report.records += 1
        yield value
    report.judge()


def read_conversations(spec: str | Path, report: ReadReport) -> Iterator[Conversation]:
    """Return the conversations of a file, a folder or a pattern; arguments and errors are those of `convert_records`."""
    return convert_records(spec, report, to_conversation)


def to_conversation(fields: Mapping[str, Any], where: str) -> Conversation:
    """Return the conversation of a record, in any of the forms of `forms`.

    Raises:
        UnreadableRecord: the record holds no conversation, or no answer to train on.
    """
    fields = present(fields)
    messages, used = conversation_messages(fields)
    messages = check_messages(messages)
    if not any(map(is_trained, messages)):
        answers = sum(message["role"] == "assistant" for message in messages)
        marked = "every message of the assistant is marked not to be trained on"
        raise UnreadableRecord("no answer", marked if answers else "no message is of the assistant")
    return Conversation(messages, where, further_fields(fields, used))


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
            # It was counted as good when it was read.
            report.records -= 1
            report.count_bad(conversation.place, error)
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
        ChatTemplateOverrun: the template needs too much time or memory. To try it on every conversation of a file could take hours.
    """
    try:
        return template.encode(tokenizer, conversation.messages, **template_variables(conversation.variables))
    except ChatTemplateOverrun as error:
        raise ChatTemplateOverrun(f"{conversation.place}: {error}") from None
    except ChatTemplateError as error:
        raise UnreadableRecord("refused by the chat template", str(error)) from None
    except ValueError as error:
        raise UnreadableRecord("not text", str(error)) from None


def _encode(
    conversation: Conversation, messages: Sequence[Mapping[str, Any]], template: ChatTemplate, tokenizer: Tokenizer
) -> Example:
    chat = encode_chat(dataclasses.replace(conversation, messages=tuple(messages)), template, tokenizer)
    trained = trained_tokens(chat, [is_trained(message) for message in messages if message["role"] == "assistant"])
    if not trained.any():
        raise UnreadableRecord("no answer", "the chat template marks nothing as the assistant's")
    return Example(chat.ids, trained)


def trained_tokens(chat: EncodedChat, answers: Sequence[bool]) -> np.ndarray:
    """Return which ids are trained on, [n] bool.

    Args:
        chat: a conversation.
        answers: of each message of the assistant, whether it is trained on.

    Raises:
        UnreadableRecord: some are not, and the template does not mark each message of the assistant by itself.
    """
    if all(answers):
        return chat.answer > 0
    if chat.answer.max(initial=0) != len(answers):
        detail = (
            f"the chat template marks {chat.answer.max(initial=0)} texts for {len(answers)} messages of the assistant"
        )
        raise UnreadableRecord("message marked not to be trained on", detail)
    return np.array([False, *answers])[chat.answer]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


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
        while shorter and not is_trained(shorter[-1]):
            shorter = shorter[:-1]
    return shorter if any(map(is_trained, shorter)) else None


def _character_boundary(ids: np.ndarray, end: int, tokenizer: Tokenizer) -> int:
    """The last place up to `end` at which no character is cut: characters outside the vocabulary are several byte tokens."""
    while end > 0 and end < len(ids) and tokenizer.token_bytes(int(ids[end]))[0] & 0xC0 == 0x80:
        end -= 1
    return end
