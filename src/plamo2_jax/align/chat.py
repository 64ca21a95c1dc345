"""Reading of conversations, and encoding as ids with a mask of the trained tokens.

`forms` and `messages` define the forms of a record. All other fields of a record become variables of the chat template.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
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
"""How to shorten a conversation that is longer than a row. last: remove messages from the end until it fits and ends with an answer. first:
remove exchanges from the beginning, but keep the system message. end: as last, but cut a single answer that is too long, between two
characters; it then has no end token. refuse: omit it. A conversation that still does not fit is omitted."""

T, E = TypeVar("T"), TypeVar("E")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages, and further variables of the chat template."""

    messages: tuple[Mapping[str, Any], ...]
    """Result of `messages.check_messages`."""
    place: str
    """File and line."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the chat template."""


@dataclasses.dataclass(frozen=True)
class Example:
    """An encoded conversation."""

    ids: np.ndarray
    """[n] int32."""
    trained: np.ndarray
    """[n] bool, True at the assistant's tokens."""


def read_records(spec: str | Path, report: ReadReport) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield `(place, fields)` of each record in a file, a folder or a pattern, like `data.readers.read_records`.

    Null values of Parquet files are omitted, also in structs, because a table has every field in every row.
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
        report: counts good records, and bad records by reason with file and line.
        convert: maps the fields of a record and its place to a value. It raises UnreadableRecord for a bad record.

    Raises:
        PlamoError: the file does not exist, or it is damaged as a whole.
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
    """Return the conversations of a file, a folder or a pattern; arguments and errors are the same as for `convert_records`."""
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
        marked = "all messages of the assistant are marked as not trained"
        raise UnreadableRecord("no answer", marked if answers else "the conversation has no message of the assistant")
    return Conversation(messages, where, further_fields(fields, used))


def encode_conversation(
    conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer, limit: int, truncate: Truncate
) -> tuple[Example | None, str]:
    """Encode a conversation as at most `limit` ids.

    Returns:
        The example and "whole" or "truncated"; or None and "too long".

    Raises:
        UnreadableRecord: the template refuses the conversation.
    """
    candidates = [list(conversation.messages)]
    while truncate != "refuse" and (shorter := _drop(candidates[-1], truncate)) is not None:
        candidates.append(shorter)
    number, example = first_fit(
        candidates,
        lambda messages: _encode(conversation, messages, template, tokenizer),
        lambda example: len(example.ids) <= limit,
    )
    if number is not None:
        return example, "truncated" if number else "whole"
    if truncate == "end":
        end = _character_boundary(example.ids, limit, tokenizer)
        if example.trained[:end].any():
            return Example(example.ids[:end], example.trained[:end]), "truncated"
    return None, "too long"


def first_fit(candidates: Sequence[T], encode: Callable[[T], E], fits: Callable[[E], bool]) -> tuple[int | None, E]:
    """Find the first candidate that fits, by bisection: each candidate is shorter than the one before.

    Returns:
        Its index and its encoding; None and the encoding of the last candidate if none fits.
    """
    found = encode(candidates[0])
    if fits(found) or len(candidates) == 1:
        return (0 if fits(found) else None), found
    low, high = 1, len(candidates) - 1
    found = encode(candidates[high])
    if not fits(found):
        return None, found
    while low < high:
        middle = (low + high) // 2
        tried = encode(candidates[middle])
        if fits(tried):
            high, found = middle, tried
        else:
            low = middle + 1
    return high, found


def encode_all(
    records: Iterable[Any],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    limit: int,
    truncate: str,
    report: ReadReport,
    encode: Callable[..., tuple[Any, str]] = encode_conversation,
) -> tuple[list[Any], Counter[str]]:
    """Encode all conversations that fit, in order, or all pairs with `encode=pairs.encode_pair`.

    Returns:
        The encoded records, and the numbers of whole, truncated and too long records. `report` counts refused records as bad.

    Raises:
        ChatTemplateError: the template does not mark the assistant's text.
        TooManyBadRecordsError: the template refuses more records than `report` allows.
    """
    require_marks(template)
    warn_of_end(template, tokenizer)
    examples, counts = [], Counter()
    for record in records:
        try:
            example, what = encode(record, template, tokenizer, limit, truncate)
        except UnreadableRecord as error:
            # The record was counted as good when it was read.
            report.records -= 1
            report.count_bad(record.place, error)
            continue
        counts[what] += 1
        if example is not None:
            examples.append(example)
    report.judge()
    return examples, counts


def require_marks(template: ChatTemplate) -> None:
    """Raise ChatTemplateError unless the template marks the assistant's text."""
    if not template.marks_answers:
        raise ChatTemplateError(
            f"{template.name} does not mark the assistant's text: put it between {{% generation %}} and {{% endgeneration %}}"
        )


def warn_of_end(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Print a warning if the control token after an answer is not between the marks: a model would not learn to end its answers."""
    exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        chat = template.encode(tokenizer, exchange)
    except ValueError:
        return  # A template for other conversations.
    after = chat.ids[np.flatnonzero(chat.answer)[-1] + 1 :][:1] if chat.answer.any() else ()
    for id in map(int, after):
        if tokenizer.is_special(id):
            print(
                f"warning: {template.name}: the control token {id} after an answer is outside of the generation marks, so the model does "
                "not learn to end its answers. Put it before {% endgeneration %}",
                file=sys.stderr,
            )


def encode_chat(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> EncodedChat:
    """Render and encode a conversation with a template.

    Raises:
        UnreadableRecord: the template refuses the conversation.
        ChatTemplateOverrun: the template needs too much time or memory. This ends the reading, because it could take hours for a file.
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
        raise UnreadableRecord("no answer", "the chat template marks no text as the assistant's")
    return Example(chat.ids, trained)


def trained_tokens(chat: EncodedChat, answers: Sequence[bool], *, separately: bool = False) -> np.ndarray:
    """Return the mask of the trained ids, [n] bool.

    Args:
        chat: the encoded conversation.
        answers: whether each message of the assistant is trained on.
        separately: whether the template must mark each of them separately even if all are.

    Raises:
        UnreadableRecord: it does not, and some are not trained on or `separately` is set.
    """
    if all(answers) and not separately:
        return chat.answer > 0
    if chat.answer.max(initial=0) != len(answers):
        detail = (
            f"the chat template marks {chat.answer.max(initial=0)} passages for {len(answers)} messages of the "
            "assistant: it must mark each message"
        )
        raise UnreadableRecord("message marked not to be trained on", detail)
    return np.array([False, *answers])[chat.answer]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def without_first_exchange(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return messages from the second message of the user on, after the system message if there is one."""
    head = [message for message in messages[:1] if message["role"] == "system"]
    return [*head, *itertools.dropwhile(lambda message: message["role"] != "user", messages[len(head) + 1 :])]


def _drop(messages: list[Mapping[str, Any]], truncate: Truncate) -> list[Mapping[str, Any]] | None:
    """Return fewer messages of the same conversation with at least one trained answer, or None if that is impossible."""
    if truncate == "first":
        shorter = without_first_exchange(messages)
    else:
        shorter = messages[:-1]
        while shorter and not is_trained(shorter[-1]):
            shorter = shorter[:-1]
    return shorter if any(map(is_trained, shorter)) else None


def _character_boundary(ids: np.ndarray, end: int, tokenizer: Tokenizer) -> int:
    """Return the largest index up to `end` that is not inside a character: rare characters are several byte tokens."""
    while end > 0 and end < len(ids) and tokenizer.token_bytes(int(ids[end]))[0] & 0xC0 == 0x80:
        end -= 1
    return end
