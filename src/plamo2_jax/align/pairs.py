"""Reading and encoding of pairs of answers and of single answers. Both answers of a pair are packed into the same row.

A record is `{"prompt": ..., "chosen": ..., "rejected": ...}`, or `{"prompt": ..., "completion": ..., "label": true or false}`. The second
form is a single answer that was liked or disliked: a pair without the rejected or without the chosen answer. The prompt is a text or
messages; an answer is a text, a message, or messages. Answers may be whole conversations; then the prompt is their common beginning.
`forms` lists other names of these fields. All other fields of a record become variables of the chat template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plamo2_jax.align import chat, forms
from plamo2_jax.align.messages import Message, check_messages, is_trained, one_of, read_messages
from plamo2_jax.data.batch import Batch
from plamo2_jax.data.documents import ReadReport, UnreadableRecord
from plamo2_jax.data.packing import Collator, to_batch
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.validation import shown

PairTruncate = Literal["first", "refuse"]
"""How to shorten a pair or a single answer that is too long. first: remove exchanges from the beginning of the prompt until it fits, but
keep the system message. refuse: omit it. Answers are never cut, because the preference is for whole answers."""
REFERENCE = "reference"
"""Name of the stored log-probabilities of the targets under the reference: [n] float32 in an element, [b, t] float32 in a batch."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt and one or two answers, each a sequence of messages. A missing answer has no messages."""

    prompt: tuple[Mapping[str, Any], ...]
    chosen: tuple[Mapping[str, Any], ...]
    rejected: tuple[Mapping[str, Any], ...]
    place: str
    """File and line."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the chat template."""

    @property
    def is_whole(self) -> bool:
        """Whether the pair has both answers."""
        return bool(self.chosen and self.rejected)


def read_pairs(spec: str | Path, report: ReadReport) -> Iterator[Pair]:
    """Return the pairs and single answers of a file, a folder or a pattern; arguments and errors are the same as for `convert_records`."""
    return chat.convert_records(spec, report, to_pair)


def to_pair(fields: Mapping[str, Any], where: str) -> Pair:
    """Return the pair, or the single answer, of a record.

    Raises:
        UnreadableRecord: a field is missing, an answer is empty, both are the same, or a label is neither true nor false.
    """
    empty = [name for name in ("completion", "label") if name in fields]
    fields = forms.present(fields)
    both = [name for name in ("chosen", "rejected") if name in fields]
    if both and "completion" in fields:
        raise UnreadableRecord("two forms", f"the field completion beside {' and '.join(both)}")
    single = not both and bool(empty or any(name in fields for name in (*forms.ANSWERS, *forms.LABELS)))
    label = _label(fields) if single else None
    names, answers, used = _answers(fields, single)
    prompt, of_prompt = _prompt(fields, answers, used)
    if prompt is None and not all(map(forms.is_whole, answers)):
        forms.refuse_empty_question(fields)
    prompt, answers = forms.split_prompt(prompt, answers, names)
    prompt = forms.with_system(fields, prompt)
    for name, answer in zip(names, answers, strict=True):
        try:
            check_messages([*prompt, *answer])
        except UnreadableRecord as error:
            raise UnreadableRecord(error.reason, f"{error.detail}, in the prompt followed by {name}") from None
    if single:
        # If the label is true, the rejected answer is missing; if it is false, the chosen answer is.
        answers.insert(int(label), [])
    elif answers[0] == answers[1]:
        raise UnreadableRecord("identical answers", "chosen and rejected are the same")
    used |= of_prompt | {"completion"} | (set(forms.LABELS) if single else set())
    return Pair(tuple(prompt), *map(tuple, answers), where, forms.further_fields(fields, used))


def _label(fields: Mapping[str, Any]) -> bool:
    name, label = one_of(fields, forms.LABELS, "the label")
    if not isinstance(label, bool):
        raise UnreadableRecord("no label", f"the field {name or 'label'} is {shown(label)}; it must be true or false")
    return label


def _answers(fields: Mapping[str, Any], single: bool) -> tuple[list[str], list[list[Message]], set[str]]:
    """Return the names of the fields with answers, the messages of the answers, and all fields that were read."""
    if not single:
        for name in ("chosen", "rejected"):
            if name not in fields:
                raise UnreadableRecord("no pair", f"no value in the field {name}; a pair has chosen and rejected")
        names = ["chosen", "rejected"]
        return names, [forms.answered(fields, fields[name], name) for name in names], set(names)
    name, answer = one_of(fields, forms.ANSWERS, "the answer")
    if name is not None:
        messages = forms.answered(fields, answer, name)
        return [name], [messages], {name for name in forms.ANSWERS if name in fields}
    name = forms.conversation_field(fields)
    if name is None:
        raise UnreadableRecord("no answer", "no value in the field completion")
    return [name], [read_messages(fields[name], name)], {name}


def _prompt(
    fields: Mapping[str, Any], answers: Sequence[Sequence[Message]], used: set[str]
) -> tuple[list[Message] | None, set[str]]:
    """Return the prompt without the system message, and the fields that were read; None if only the answers hold the prompt."""
    name = forms.asked_in(fields)
    if name is None or name in used:
        return forms.question_messages(fields) or (None, set())
    prompt = read_messages(fields[name], name)
    if prompt[-1]["role"] != "assistant":
        return prompt, {name}
    question = forms.question_messages(fields)
    if question is not None:
        return question
    if all(map(forms.is_whole, answers)):
        # Such tables repeat the chosen conversation in this field.
        return None, set()
    raise UnreadableRecord("no prompt", f"{name} ends with an answer; it must end with the question to the answers")


def encode_pair(
    pair: Pair, template: ChatTemplate, tokenizer: Tokenizer, limit: int, truncate: PairTruncate
) -> tuple[dict[str, np.ndarray] | None, str]:
    """Encode a pair or a single answer as an element of at most `limit` positions.

    Returns:
        The element and "whole" or "truncated"; or None and "too long". The element has arrays [n]: prompt and chosen answer, then prompt
        and rejected answer, without a missing answer. `tokens` and `targets` are int32; `weights` is float32, 1 at the targets of the
        answer; `positions` is int32 and starts at 0 for each answer; `role` is int32, 0 for the chosen and 1 for the rejected answer.

    Raises:
        UnreadableRecord: the template refuses the pair, or both answers have the same tokens.
    """
    answers = {side: answer for side, answer in enumerate((pair.chosen, pair.rejected)) if answer}
    prompts = [list(pair.prompt)]
    while truncate != "refuse":
        shorter = chat.without_first_exchange(prompts[-1])
        if all(message["role"] == "system" for message in shorter):
            break
        prompts.append(shorter)

    def encode(prompt: list[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
        sides = [_encode_side(pair, prompt, answer, template, tokenizer) for answer in answers.values()]
        if pair.is_whole and np.array_equal(sides[0]["targets"], sides[1]["targets"]):
            raise UnreadableRecord("identical answers", "chosen and rejected have the same tokens")
        return sides

    number, sides = chat.first_fit(prompts, encode, lambda sides: sum(len(side["tokens"]) for side in sides) <= limit)
    if number is None:
        return None, "too long"
    lengths = [len(side["tokens"]) for side in sides]
    joined = {name: np.concatenate([side[name] for side in sides]) for name in sides[0]}
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    role = np.repeat(np.array([*answers], np.int32), lengths)
    return {**joined, "positions": positions, "role": role}, "truncated" if number else "whole"


def pair_collator(max_pairs: int, with_reference: bool) -> Collator:
    """Return the data collator of pairs: segments 2k − 1 and 2k of a row are the chosen and the rejected answer of its pair k.

    A single answer is a pair with one segment missing. With a reference, batches have the array REFERENCE.
    """
    features = ("tokens", "targets", "weights", "positions", "role", *([REFERENCE] if with_reference else []))
    return Collator(features, _to_batch, max_pairs)


def _to_batch(packed: Mapping[str, np.ndarray]) -> Batch:
    batch = to_batch(packed)
    number = batch["segment_ids"]
    batch["segment_ids"] = np.where(number > 0, 2 * number - 1 + packed["role"], 0).astype(np.int32)
    return {**batch, REFERENCE: packed[REFERENCE]} if REFERENCE in packed else batch


def _encode_side(
    pair: Pair,
    prompt: list[Mapping[str, Any]],
    answer: tuple[Mapping[str, Any], ...],
    template: ChatTemplate,
    tokenizer: Tokenizer,
) -> dict[str, np.ndarray]:
    """Return inputs, targets and weights of a prompt and an answer. Answers in the prompt have weight 0."""
    whole = chat.encode_chat(chat.Conversation((*prompt, *answer), pair.place, pair.variables), template, tokenizer)
    before = sum(message["role"] == "assistant" for message in prompt)
    marks = [is_trained(message) for message in answer if message["role"] == "assistant"]
    # Otherwise marks of the prompt's answers would count as marks of this answer.
    trained = chat.trained_tokens(whole, [True] * before + marks, separately=before > 0)
    weights = (trained & (whole.answer > before)).astype(np.float32)[1:]
    if not weights.any():
        raise UnreadableRecord("no answer", "the chat template marks no part of it as the assistant's text")
    # Tokens after the last answer have weight 0 and are dropped.
    end = int(np.flatnonzero(weights)[-1]) + 1
    return {"tokens": whole.ids[:-1][:end], "targets": whole.ids[1:][:end], "weights": weights[:end]}
