"""Forms of a record: which of its fields hold the messages, the question, the answers and the system message.

A record holds a whole conversation (CONVERSATIONS), or a question and an answer in fields of their own (QUESTIONS, ANSWERS). A field that
is null or empty is absent. docs/post_training.md lists the forms with an example each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plamo2_jax.align.messages import Message, decoded, one_of, read_messages, read_tools, shown
from plamo2_jax.data.documents import UnreadableRecord
from plamo2_jax.json_input import parse_json

Fields = Mapping[str, Any]

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "inputs")
CONTEXTS = ("input", "context")
"""What stands below the question, after a blank line."""
ANSWERS = ("output", "response", "completion", "answer", "targets")
SYSTEMS = ("system", "system_prompt")
LABELS = ("label", "kto_tag")
"""Whether a single answer was liked."""
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
    """Return the messages of a conversation to train on, and the fields that they come from.

    Raises:
        UnreadableRecord: the record has no form that is read, holds an answer that was disliked, or has two forms that differ.
    """
    _, label = one_of(fields, LABELS, "the label")
    if label is False:
        raise UnreadableRecord("disliked answer", "the label is false: only plamo2 dpo can train on such an answer")
    name = conversation_field(fields)
    if name is not None:
        return with_system(fields, read_messages(fields[name], name)), {name}
    given = _filled(fields, ANSWERS)
    field, answer = one_of(given, ANSWERS, "the answer")
    question = question_messages(fields)
    if question is None and field is not None and "text" in _filled(fields, ("text",)):
        question = said(fields["text"], "user", "text"), {"text"}
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
            raise UnreadableRecord("no conversation", "chosen and rejected are preference data; train with plamo2 dpo")
        field = next((name for name in ANSWERS if name in fields), ANSWERS[0])
        raise UnreadableRecord("empty message", f"the field {field} must be text that is not empty")
    answer = said(answer, "assistant", field, after_label=is_labelled(fields.get("prompt")))
    messages, (answer,) = split_prompt(messages, [answer], (field,))
    return with_system(fields, [*messages, *answer]), {*used, *given}


def question_messages(fields: Fields) -> tuple[list[Message], set[str]] | None:
    """Return what comes before the answer, without the system message, and the fields it comes from; None where no field holds it.

    Raises:
        UnreadableRecord: the field is of another type, or two fields hold different questions.
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
    return [*_history(fields), *said(question, "user", name)], used


def refuse_empty_question(fields: Fields) -> None:
    """Raise UnreadableRecord if a field of QUESTIONS is there and empty."""
    for name in QUESTIONS:
        if isinstance(fields.get(name), str) and not fields[name].strip():
            raise UnreadableRecord("empty message", f"the field {name} must be text that is not empty")


def with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """Return messages with the text of the record's system field as the first of them.

    Raises:
        UnreadableRecord: the field holds no text, or the first message is another system message.
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
    """Return the name of the field with messages if it holds what was asked; None where a field of QUESTIONS does.

    Tables with a field `prompt` repeat it in the messages. Other names of QUESTIONS may be columns of their own.
    """
    return None if _filled(fields, ("prompt",)) else conversation_field(fields)


def further_fields(fields: Fields, used: set[str]) -> dict[str, Any]:
    """Return the rest of a record for the chat template, with tools in the one form.

    Raises:
        UnreadableRecord: the tools are malformed.
    """
    names = ["tools", *(["functions"] if _are_objects(fields.get("functions")) else [])]
    name, tools = one_of({name: fields.get(name) or None for name in names}, names, "the tools")
    tools = read_tools(tools)
    gone = {*used, *SYSTEMS, "tools", *([name] if name else [])}
    rest = {name: value for name, value in fields.items() if name not in gone}
    return rest if tools is None else {**rest, "tools": tools}


def said(value: Any, role: str, name: str, after_label: bool = False) -> list[Message]:
    """Return the messages of a field: a text is one message, unless it is a whole conversation itself.

    Args:
        value: a text, a message, a list of messages, JSON text of messages, or a text in which each speaker is named:
            "\\n\\nHuman: ...\\n\\nAssistant: ...".
        role: who says a plain text.
        name: of the field.
        after_label: the text follows a speaker's name, so that white space around it is no part of it.

    Raises:
        UnreadableRecord: the value is something else, or empty text.
    """
    if isinstance(value, str):
        if not value.strip():
            raise UnreadableRecord("empty message", f"the field {name} must be text that is not empty")
        whole = _labelled(value) or _json_messages(value, name)
        return whole or [{"role": role, "content": value.strip() if after_label else value}]
    if not isinstance(value, list | dict):
        detail = f"the field {name} holds {shown(value)}; it must be a text, a message or a list of messages"
        raise UnreadableRecord("no messages", detail)
    return read_messages(value, name) if value else []


def split_prompt(
    prompt: list[Message] | None, answers: Sequence[list[Message]], names: Sequence[str]
) -> tuple[list[Message], list[list[Message]]]:
    """Return the prompt and the answers to it, where the answers may be whole conversations that begin with the prompt.

    Args:
        prompt: what was asked; None where only the answers say it.
        answers: one or two; messages each.
        names: their fields.

    Raises:
        UnreadableRecord: an answer does not end with the assistant's message, there is no prompt, or not the one of the conversations.
    """
    for name, answer in zip(names, answers, strict=True):
        if not answer or answer[-1]["role"] != "assistant":
            detail = (
                f"{name} must begin and end with a message of the assistant, or be a whole conversation that ends so"
            )
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
        detail = (
            f"{' and '.join(names)} differ before an answer; they must begin with the same messages up to their answers"
        )
        raise UnreadableRecord("no prompt", detail)
    if prompt:
        if not _stands_in(prompt, shared):
            detail = (
                f"{' and '.join(names)} are whole conversations that do not begin with the prompt; remove the prompt"
            )
            raise UnreadableRecord("two prompts", detail)
        if prompt[0]["role"] == "system" != shared[0]["role"]:
            shared = [prompt[0], *shared]
        elif prompt[0]["role"] == "system" and prompt[0] != shared[0]:
            raise UnreadableRecord("two system messages", "those of the prompt and of the conversations are different")
    return shared, rest


def is_whole(answer: Sequence[Message]) -> bool:
    """Whether the messages of an answer are a whole conversation, with what was asked."""
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
    """Whether a prompt is the beginning of a conversation or the text of one of its questions."""
    asked, found = (
        [(m["role"], m["content"].strip()) for m in messages if m["role"] != "system"] for messages in (prompt, shared)
    )
    return found[: len(asked)] == asked or (len(asked) == 1 and asked[0] in found)


def _filled(fields: Fields, names: Sequence[str]) -> dict[str, Any]:
    """Those of some fields that hold anything."""
    found = {name: fields[name] for name in names if fields.get(name) not in (None, [], {})}
    return {name: value for name, value in found.items() if not (isinstance(value, str) and not value.strip())}


def _history(fields: Fields) -> list[Message]:
    """Earlier pairs of question and answer, as messages."""
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
    """Whether a value is a text that names its speakers."""
    return isinstance(value, str) and _labelled(value) is not None


def _labelled(text: str) -> list[Message] | None:
    """The messages of a text that names its speakers; None where it names none."""
    pieces = _LABEL.split(f"\n\n{text.strip()}")
    if pieces[0] or len(pieces) == 1 or not ("Assistant" in pieces[1::2] or text.startswith("\n\nHuman:")):
        return None
    labels, texts = pieces[1::2], [piece.strip() for piece in pieces[2::2]]
    messages = [{"role": _LABELLED[label], "content": text} for label, text in zip(labels, texts, strict=True)]
    # A prompt ends with the name of the one who is to answer.
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def _json_messages(text: str, name: str) -> list[Message] | None:
    """The messages that a text is JSON of; None where it is another text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        value = parse_json(text, name)
    except ValueError:
        return None
    value = value if isinstance(value, list) else [value]
    known = [isinstance(m, dict) and ({"role", "content"} <= m.keys() or {"from", "value"} <= m.keys()) for m in value]
    return read_messages(value, name) if value and all(known) else None


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
