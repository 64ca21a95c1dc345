"""Forms of a record: the fields that hold the messages, the question, the answers and the system message.

A record holds a whole conversation (CONVERSATIONS), or a question and an answer in separate fields (QUESTIONS, ANSWERS). A field that is
null or empty counts as absent. docs/post_training.md lists the forms with an example each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plamo2_jax.align.messages import Message, decoded, one_of, read_messages, read_tools
from plamo2_jax.data.documents import UnreadableRecord
from plamo2_jax.json_input import parse_json
from plamo2_jax.validation import shown

Fields = Mapping[str, Any]

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "inputs")
CONTEXTS = ("input", "context")
"""Text that is appended to the question, after a blank line."""
ANSWERS = ("output", "response", "completion", "answer", "targets")
SYSTEMS = ("system", "system_prompt", "system_message")
LABELS = ("label", "kto_tag")
"""Fields that say whether a single answer was liked."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")

_LABEL = re.compile(r"\n\n(Human|User|Assistant|System):")
_LABELLED = {"Human": "user", "User": "user", "Assistant": "assistant", "System": "system"}


def present(fields: Fields) -> dict[str, Any]:
    """Return the fields that are not null.

    Raises:
        UnreadableRecord: the record holds images, video or audio.
    """
    for name in MEDIA:
        if fields.get(name):
            raise UnreadableRecord("not text alone", f"the field {name} holds {shown(fields[name])}; only text is read")
    return {name: value for name, value in fields.items() if value is not None}


def conversation_field(fields: Fields) -> str | None:
    """Return the name of the field that holds messages; None where there is none."""
    return next((name for name in CONVERSATIONS if fields.get(name) not in (None, "", [], "[]")), None)


def conversation_messages(fields: Fields) -> tuple[list[Message], set[str]]:
    """Return the messages of a conversation to train on, and the fields that were read.

    Raises:
        UnreadableRecord: the record has no known form, holds a disliked answer, or has two forms with different content.
    """
    _, label = one_of(fields, LABELS, "the label")
    # In a record with a conversation, a number may be a class of the text.
    disliked = (0, "0", "false", "False") if conversation_field(fields) is None else ()
    if label is False or label in disliked:
        raise UnreadableRecord(
            "disliked answer", "the label is false: a disliked answer can only be used with plamo2 dpo"
        )
    name = conversation_field(fields)
    if name is not None:
        return with_system(fields, read_messages(fields[name], name)), {name}
    given = _filled(fields, ANSWERS)
    field, answer = one_of(given, ANSWERS, "the answer")
    question = question_messages(fields)
    if question is None and field is not None and "text" in _filled(fields, ("text",)):
        question = said(fields["text"], "user", "text", is_text=True), {"text"}
    if question is None:
        refuse_empty_question(fields)
        for name in CONVERSATIONS:
            if name in fields:
                raise UnreadableRecord("no messages", f"{name} must be a list of messages that is not empty")
        names = ", ".join(list(fields)[:8]) or "no field"
        wanted = f"{', '.join((*CONVERSATIONS[:2], *QUESTIONS[:3]))}"
        raise UnreadableRecord("no conversation", f"it has {shown(names)[1:-1]}; it must have one of {wanted}")
    messages, used = question
    if field is None:
        if _filled(fields, ("chosen", "rejected")):
            raise UnreadableRecord(
                "no conversation", "chosen and rejected are preference data: train on them with plamo2 dpo"
            )
        field = next((name for name in ANSWERS if name in fields), ANSWERS[0])
        raise UnreadableRecord("empty message", f"the field {field} must be text that is not empty")
    answer = answered(fields, answer, field)
    messages, (answer,) = split_prompt(messages, [answer], (field,))
    return with_system(fields, [*messages, *answer]), {*used, *given}


def question_messages(fields: Fields) -> tuple[list[Message], set[str]] | None:
    """Return the messages before the answer, without the system message, and the fields that were read; None if no field holds a question.

    Raises:
        UnreadableRecord: a field has another type, or two fields hold different questions.
    """
    filled = _filled(fields, (*QUESTIONS, *CONTEXTS))
    name, question = one_of(filled, QUESTIONS, "the question")
    context_name, context = one_of(filled, CONTEXTS, "the context")
    if context is not None and not isinstance(context, str) and not (name and isinstance(question, list | dict)):
        raise UnreadableRecord("content not a string", f"the field {context_name} holds {shown(context)}")
    used = {*filled, "history"}
    if name is None:
        if "input" not in filled:
            return None
        name, question = "input", filled["input"]
    elif isinstance(question, str) and context is not None and context != question:
        question = f"{question}\n\n{context}"
    elif not isinstance(question, str):
        used -= set(CONTEXTS)
    return [*_history(fields), *said(question, "user", name, is_text=name != "prompt")], used


def refuse_empty_question(fields: Fields) -> None:
    """Raise UnreadableRecord if a field of QUESTIONS is empty text."""
    for name in QUESTIONS:
        if isinstance(fields.get(name), str) and not fields[name].strip():
            raise UnreadableRecord("empty message", f"the field {name} must be text that is not empty")


def with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """Return the messages after the system message of the record, if it has one.

    Raises:
        UnreadableRecord: the system field holds no text, or the first message is a different system message.
    """
    name, text = one_of(_filled(fields, SYSTEMS), SYSTEMS, "the system message")
    if name is None:
        return messages
    (system,) = read_messages([{"role": "system", "content": text}], name)
    if not messages or messages[0]["role"] != "system":
        return [system, *messages]
    if messages[0]["content"] != system["content"]:
        raise UnreadableRecord("two system messages", f"{name} and message 1 are different; remove one of them")
    return messages


def asked_in(fields: Fields) -> str | None:
    """Return the name of the field with messages if it holds the question; None if the field `prompt` does.

    Tables with a field `prompt` repeat it in the messages. Other fields of QUESTIONS may be unrelated columns.
    """
    return None if _filled(fields, ("prompt",)) else conversation_field(fields)


def further_fields(fields: Fields, used: set[str]) -> dict[str, Any]:
    """Return the other fields of a record, for the chat template, with tools in one form.

    Raises:
        UnreadableRecord: the tools are malformed.
    """
    functions = fields.get("functions")
    are_tools = isinstance(functions, list) and all(isinstance(item, dict) for item in functions)
    names = ("tools", "functions") if are_tools else ("tools",)
    name, tools = one_of({name: fields.get(name) or None for name in names}, names, "the tools")
    tools = read_tools(tools)
    gone = {*used, *SYSTEMS, "tools", *([name] if name else [])}
    rest = {name: value for name, value in fields.items() if name not in gone}
    return rest if tools is None else {**rest, "tools": tools}


def answered(fields: Fields, value: Any, name: str) -> list[Message]:
    """Return the messages of an answer.

    A text can be a whole conversation only if no other field has the question, if `prompt` is a conversation in the same form, or if the
    conversation begins with the question. Otherwise it is the words of the assistant: models invent further turns, and their answers must
    be trained on as they were written.

    Args:
        fields: the record.
        value: value of the answer.
        name: name of its field.

    Raises:
        UnreadableRecord: as for `said`.
    """
    prompt, field = fields.get("prompt"), asked_in(fields)
    labelled = is_labelled(prompt)
    asked = {text.strip() for text in _filled(fields, (*QUESTIONS, "text")).values() if isinstance(text, str)}
    for messages in (prompt, fields.get(field) if field != name else None):
        if isinstance(messages, list):
            asked |= {
                m["content"].strip() for m in messages if isinstance(m, dict) and isinstance(m.get("content"), str)
            }
    is_json = isinstance(prompt, str) and _json_messages(prompt, "prompt") is not None
    if not asked or labelled or is_json or not isinstance(value, str):
        return said(value, "assistant", name, after_label=labelled)
    try:
        found = _labelled(value) or _json_messages(value, name) or []
    except UnreadableRecord:
        found = []
    begins = is_whole(found) and any(m["role"] == "user" and m["content"].strip() in asked for m in found)
    return found if begins else said(value, "assistant", name, is_text=True)


def said(value: Any, role: str, name: str, *, after_label: bool = False, is_text: bool = False) -> list[Message]:
    """Return the messages of a field. A text is one message, unless it holds a whole conversation.

    Args:
        value: a text, a message, a list of messages, JSON text of messages, or a text with labels:
            "\\n\\nHuman: ...\\n\\nAssistant: ...".
        role: role of a plain text.
        name: name of the field.
        after_label: whether the text follows a label, and white space around it must be removed.
        is_text: whether a text is one message even if it looks like a conversation.

    Raises:
        UnreadableRecord: the value is something else, or empty text.
    """
    if isinstance(value, str):
        if not value.strip():
            raise UnreadableRecord("empty message", f"the field {name} must be text that is not empty")
        whole = None if is_text else _labelled(value) or _json_messages(value, name)
        return whole or [{"role": role, "content": value.strip() if after_label else value}]
    if not isinstance(value, list | dict):
        detail = f"the field {name} holds {shown(value)}; it must be a text, a message or a list of messages"
        raise UnreadableRecord("no messages", detail)
    return read_messages(value, name) if value else []


def split_prompt(
    prompt: list[Message] | None, answers: Sequence[list[Message]], names: Sequence[str]
) -> tuple[list[Message], list[list[Message]]]:
    """Return the prompt and the answers to it. The answers may be whole conversations that begin with the prompt.

    Args:
        prompt: messages of the prompt; None if only the answers hold it.
        answers: messages of one or two answers.
        names: fields of the answers.

    Raises:
        UnreadableRecord: an answer does not end with a message of the assistant, or the prompt is missing or differs from the one in the
            answers.
    """
    for name, answer in zip(names, answers, strict=True):
        if not answer or answer[-1]["role"] != "assistant":
            detail = f"{name} must begin and end with a message of the assistant, or be a whole conversation"
            raise UnreadableRecord("no answer", detail)
    if prompt:
        cut = [answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer for answer in answers]
        if all(answer and not is_whole(answer) for answer in cut) and not all(map(is_whole, answers)):
            return prompt, cut
    if not all(map(is_whole, answers)):
        _refuse_parts(prompt, answers, names)
    shared = answers[0][:-1]
    for answer in answers[1:]:
        common = 0
        while common < min(len(shared), len(answer) - 1) and shared[common] == answer[common]:
            common += 1
        shared = shared[:common]
    if not shared:
        raise UnreadableRecord(
            "no prompt", f"{' and '.join(names)} begin with different messages; give the field prompt"
        )
    rest = [answer[len(shared) :] for answer in answers]
    if any(answer[0]["role"] != "assistant" for answer in rest):
        detail = f"{' and '.join(names)} differ before an answer; only their last answers may differ"
        raise UnreadableRecord("no prompt", detail)
    if prompt:
        if not _stands_in(prompt, shared):
            detail = f"the conversations in {' and '.join(names)} do not begin with the prompt; remove the prompt"
            raise UnreadableRecord("two prompts", detail)
        if prompt[0]["role"] == "system" != shared[0]["role"]:
            shared = [prompt[0], *shared]
        elif prompt[0]["role"] == "system" and prompt[0] != shared[0]:
            raise UnreadableRecord(
                "two system messages", "the prompt and the conversations have different system messages"
            )
    return shared, rest


def is_whole(answer: Sequence[Message]) -> bool:
    """Return whether the messages of an answer are a whole conversation that includes the question."""
    return bool(answer) and answer[0]["role"] != "assistant"


def _refuse_parts(prompt: list[Message] | None, answers: Sequence[list[Message]], names: Sequence[str]) -> None:
    """Raise UnreadableRecord for two answers without a prompt, or if only one of them is a whole conversation."""
    if prompt:
        whole = [name for name, answer in zip(names, answers, strict=True) if is_whole(answer)]
        detail = f"{' and '.join(whole)} must begin with the prompt, or with a message of the assistant"
        raise UnreadableRecord("two prompts", detail)
    if len(names) == 1:
        raise UnreadableRecord("no prompt", f"no value in the field prompt, and {names[0]} is no whole conversation")
    detail = (
        "no value in the field prompt, and no messages that chosen and rejected begin with; give the field prompt, or name the "
        'speakers in both texts ("\\n\\nHuman: ", "\\n\\nAssistant: ")'
    )
    raise UnreadableRecord("no prompt", detail)


def _stands_in(prompt: Sequence[Message], shared: Sequence[Message]) -> bool:
    """Return whether a prompt is the beginning of a conversation or one of its questions."""
    asked, found = (
        [(m["role"], m["content"].strip()) for m in messages if m["role"] != "system"] for messages in (prompt, shared)
    )
    return found[: len(asked)] == asked or (len(asked) == 1 and asked[0] in found)


def _filled(fields: Fields, names: Sequence[str]) -> dict[str, Any]:
    """Return the named fields that are not empty."""
    found = {name: fields[name] for name in names if fields.get(name) not in (None, [], {})}
    return {name: value for name, value in found.items() if not (isinstance(value, str) and not value.strip())}


def _history(fields: Fields) -> list[Message]:
    """Return the earlier pairs of question and answer as messages."""
    history = decoded(fields.get("history"), "history")
    if history is None:
        return []
    messages = []
    turns = history if isinstance(history, list) else [history]
    for turn in turns:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UnreadableRecord("bad history", f"history is {shown(history)}; it must be a list of pairs of texts")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return read_messages(messages, "history") if messages else []


def is_labelled(value: Any) -> bool:
    """Return whether a value is a text with labels, such as "Human:"."""
    return isinstance(value, str) and _labelled(value) is not None


def _labelled(text: str) -> list[Message] | None:
    """Return the messages of a text with labels, or None for another text."""
    pieces = _LABEL.split(f"\n\n{text.strip()}")
    if pieces[0] or len(pieces) == 1 or not ("Assistant" in pieces[1::2] or text.startswith("\n\nHuman:")):
        return None
    labels, texts = pieces[1::2], [piece.strip() for piece in pieces[2::2]]
    messages = [{"role": _LABELLED[label], "content": text} for label, text in zip(labels, texts, strict=True)]
    # A prompt ends with the label of the next speaker.
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def _json_messages(text: str, name: str) -> list[Message] | None:
    """Return the messages of JSON text, or None for another text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        value = parse_json(text, name)
    except ValueError:
        return None
    value = value if isinstance(value, list) else [value]
    known = [isinstance(m, dict) and ({"role", "content"} <= m.keys() or {"from", "value"} <= m.keys()) for m in value]
    return read_messages(value, name) if value and all(known) else None
