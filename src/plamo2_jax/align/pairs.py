"""Pairs of answers, and single ones: read from files, checked, and packed so that both answers of a pair lie in one row.

A record is `{"prompt": ..., "chosen": ..., "rejected": ...}`, or `{"prompt": ..., "completion": ..., "label": true or false}`: a single
answer that was liked or disliked, which is a pair without the rejected or without the chosen answer. The prompt is a text or messages;
an answer is a text, a message, or messages. Answers may be whole conversations; then the prompt is what they begin with in common. `forms`
says which other fields hold the same. The rest of a record are variables of the chat template.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plamo2_jax.align.chat import Conversation, convert_records, encode_chat, trained_tokens
from plamo2_jax.align.forms import (
    ANSWERS,
    LABELS,
    asked_in,
    conversation_field,
    further_fields,
    is_labelled,
    is_whole,
    present,
    question_messages,
    refuse_empty_question,
    said,
    split_prompt,
    with_system,
)
from plamo2_jax.align.messages import Message, check_messages, is_trained, one_of, read_messages, shown
from plamo2_jax.data.batch import Batch
from plamo2_jax.data.documents import ReadReport, UnreadableRecord
from plamo2_jax.data.packing import Collator, to_batch
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer

PairTruncate = Literal["first", "refuse"]
"""What becomes of a pair or a single answer that is too long. first: the first exchanges of its prompt go, but not the system message,
until it fits. refuse: it is left out. Answers are never cut: half an answer was preferred by nobody."""
REFERENCE = "reference"
"""What an element and a batch hold of precomputed log-probabilities: [n], [b, t] float32, of each target under the reference."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt and two answers, or one of them, all messages; of a missing answer there are none."""

    prompt: tuple[Mapping[str, Any], ...]
    chosen: tuple[Mapping[str, Any], ...]
    rejected: tuple[Mapping[str, Any], ...]
    place: str
    """File and line."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the chat template."""

    @property
    def is_whole(self) -> bool:
        """Whether both answers are there."""
        return bool(self.chosen and self.rejected)


def read_pairs(spec: str | Path, report: ReadReport) -> Iterator[Pair]:
    """Return the pairs and single answers of a file, a folder or a pattern; arguments and errors are those of `convert_records`."""
    return convert_records(spec, report, to_pair)


def to_pair(fields: Mapping[str, Any], where: str) -> Pair:
    """Return the pair, or the single answer, of a record.

    Raises:
        UnreadableRecord: a field is missing, an answer is empty, both are the same, or a label is neither true nor false.
    """
    empty = [name for name in ("completion", "label") if name in fields]
    fields = present(fields)
    both = [name for name in ("chosen", "rejected") if name in fields]
    if both and "completion" in fields:
        raise UnreadableRecord("two forms", f"the field completion beside {' and '.join(both)}")
    single = not both and bool(empty or any(name in fields for name in (*ANSWERS, *LABELS)))
    label = _label(fields) if single else None
    names, answers, used = _answers(fields, single)
    prompt, of_prompt = _prompt(fields, answers, used)
    if prompt is None and not all(map(is_whole, answers)):
        refuse_empty_question(fields)
    prompt, answers = split_prompt(prompt, answers, names)
    prompt = with_system(fields, prompt)
    for name, answer in zip(names, answers, strict=True):
        try:
            check_messages([*prompt, *answer])
        except UnreadableRecord as error:
            raise UnreadableRecord(error.reason, f"{error.detail}, counted from the prompt's first to {name}") from None
    if single:
        # The rejected answer is missing where the label is true, the chosen one where it is false.
        answers.insert(int(label), [])
    elif answers[0] == answers[1]:
        raise UnreadableRecord("identical answers", "chosen and rejected are the same")
    used |= of_prompt | {"completion"} | (set(LABELS) if single else set())
    return Pair(tuple(prompt), *map(tuple, answers), where, further_fields(fields, used))


def _label(fields: Mapping[str, Any]) -> bool:
    name, label = one_of(fields, LABELS, "the label")
    if not isinstance(label, bool):
        raise UnreadableRecord("no label", f"the field {name or 'label'} is {shown(label)}; it must be true or false")
    return label


def _answers(fields: Mapping[str, Any], single: bool) -> tuple[list[str], list[list[Message]], set[str]]:
    """The names of the fields with answers, their messages, and all fields that are read."""
    after_label = is_labelled(fields.get("prompt"))
    if not single:
        for name in ("chosen", "rejected"):
            if name not in fields:
                raise UnreadableRecord("no pair", f"no value in the field {name}; a pair has chosen and rejected")
        names = ["chosen", "rejected"]
        return names, [said(fields[name], "assistant", name, after_label) for name in names], set(names)
    name, answer = one_of(fields, ANSWERS, "the answer")
    if name is not None:
        return [name], [said(answer, "assistant", name, after_label)], {name for name in ANSWERS if name in fields}
    name = conversation_field(fields)
    if name is None:
        raise UnreadableRecord("no answer", "no value in the field completion")
    return [name], [read_messages(fields[name], name)], {name}


def _prompt(
    fields: Mapping[str, Any], answers: Sequence[Sequence[Message]], used: set[str]
) -> tuple[list[Message] | None, set[str]]:
    """What was asked, without the system message, and the fields it comes from; None where only the answers say it."""
    name = asked_in(fields)
    if name is None or name in used:
        return question_messages(fields) or (None, set())
    prompt = read_messages(fields[name], name)
    if prompt[-1]["role"] != "assistant":
        return prompt, {name}
    question = question_messages(fields)
    if question is not None:
        return question
    if all(map(is_whole, answers)):
        # Such tables repeat the chosen conversation there.
        return None, set()
    raise UnreadableRecord("no prompt", f"{name} ends with an answer; it must end with what chosen and rejected answer")


def encode_pair(
    pair: Pair, template: ChatTemplate, tokenizer: Tokenizer, limit: int, truncate: PairTruncate
) -> tuple[dict[str, np.ndarray] | None, str]:
    """A pair or a single answer as an element of at most `limit` positions, and what was done to it: "whole", "truncated" or "too long".

    Returns:
        Arrays [n], the chosen answer behind its prompt and then the rejected one behind its own, as far as they are there: `tokens`,
        `targets` int32; `weights` float32, 1 at targets that are an answer's; `positions` int32, from 0 in each of the two; `role`
        int32, 0 for the chosen and 1 for the rejected answer.

    Raises:
        UnreadableRecord: the template refuses it, or both answers have the same tokens.
    """
    prompt, what = list(pair.prompt), "whole"
    answers = {side: answer for side, answer in enumerate((pair.chosen, pair.rejected)) if answer}
    while True:
        sides = [_encode_side(pair, prompt, answer, template, tokenizer) for answer in answers.values()]
        if pair.is_whole and np.array_equal(sides[0]["targets"], sides[1]["targets"]):
            raise UnreadableRecord("identical answers", "chosen and rejected have the same tokens")
        lengths = [len(side["tokens"]) for side in sides]
        if sum(lengths) <= limit:
            joined = {name: np.concatenate([side[name] for side in sides]) for name in sides[0]}
            positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
            role = np.repeat(np.array([*answers], np.int32), lengths)
            return {**joined, "positions": positions, "role": role}, what
        head = [message for message in prompt[:1] if message["role"] == "system"]
        rest = prompt[len(head) + 1 :]
        while rest and rest[0]["role"] != "user":
            rest = rest[1:]
        if truncate == "refuse" or not rest:
            return None, "too long"
        prompt, what = [*head, *rest], "truncated"


def encode_pairs(
    pairs: Iterable[Pair],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    limit: int,
    truncate: PairTruncate,
    report: ReadReport,
) -> tuple[list[dict[str, np.ndarray]], Counter[str]]:
    """All that fit, in order, and how many were whole, truncated and too long.

    Raises:
        TooManyBadRecordsError: the template refuses more of them than `report` allows.
    """
    elements, counts = [], Counter()
    for pair in pairs:
        try:
            element, what = encode_pair(pair, template, tokenizer, limit, truncate)
        except UnreadableRecord as error:
            # It was counted as good when it was read.
            report.records -= 1
            report.count_bad(pair.place, error)
            continue
        counts[what] += 1
        if element is not None:
            elements.append(element)
    report.judge()
    return elements, counts


def pair_collator(max_pairs: int, with_reference: bool) -> Collator:
    """Return the collator of pairs: segments 2k − 1 and 2k are the answers of a row's pair k; `reference` is an array of the batch.

    A single answer takes the place of a pair, of which it is the one or the other segment.
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
    """Inputs, targets and weights of prompt and answer. Answers in the prompt are not the pair's."""
    whole = encode_chat(Conversation((*prompt, *answer), pair.place, pair.variables), template, tokenizer)
    before = sum(message["role"] == "assistant" for message in prompt)
    marks = [is_trained(message) for message in answer if message["role"] == "assistant"]
    trained = trained_tokens(whole, [True] * before + marks)
    weights = (trained & (whole.answer > before)).astype(np.float32)[1:]
    if not weights.any():
        raise UnreadableRecord("no answer", "the chat template marks nothing of it as the assistant's")
    # What follows the last answer says nothing about it.
    end = int(np.flatnonzero(weights)[-1]) + 1
    return {"tokens": whole.ids[:-1][:end], "targets": whole.ids[1:][:end], "weights": weights[:end]}
