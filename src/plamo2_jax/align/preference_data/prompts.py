"""Reading of prompts, with the rules for their answers.

A record is `{"prompt": text or messages}`, or `{"messages": [...]}`: a conversation as for fine-tuning, whose prompt ends before its last
answer. `forms` lists other names of these fields. A record may have an `id` and `rules`. All other fields are kept as variables of the
chat template.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.align import forms
from plamo2_jax.align.chat import read_records
from plamo2_jax.align.messages import check_messages, read_messages
from plamo2_jax.data.dedup import duplicates_of
from plamo2_jax.data.documents import ReadReport, UnreadableRecord
from plamo2_jax.data.minhash import DedupConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.answer_rules import RuleError, check_rules
from plamo2_jax.validation import shown

# Fields of a record that are no variables of the chat template.
_TAKEN = {
    *("id", "rules", "chosen", "rejected", "provenance", "history", "text"),
    *(*forms.CONVERSATIONS, *forms.QUESTIONS, *forms.ANSWERS, *forms.LABELS),
}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation that the policy continues."""

    id: str
    """Unique id among the prompts of a run."""
    messages: tuple[Mapping[str, Any], ...]
    """The messages before the answer."""
    rules: Mapping[str, Any]
    """Rules for the answers (see `rules`)."""
    place: str
    """File and line."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Variables of the chat template."""


def read_prompts(files: Iterable[str | Path], rules: Mapping[str, Any]) -> list[Prompt]:
    """Read the prompts of files, folders and patterns, in order.

    Args:
        files: JSON lines, Parquet or ArrayRecord.
        rules: rules of every prompt. The rules of a record replace them, and null removes one.

    Raises:
        PlamoError: a record is no prompt, a rule is unknown or malformed, or two prompts have the same id; the message names file and line.
    """
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for file in files:
        for where, fields in read_records(file, ReadReport(max_bad_rate=0.0, judge_after=1)):
            try:
                prompt = to_prompt(fields, where, rules)
            except UnreadableRecord as error:
                raise PlamoError(f"{where}: {error.reason} ({error.detail})") from None
            except RuleError as error:
                raise PlamoError(f"{where}: {error}") from None
            if fields.get("id") is None:
                # Equal prompts without an id are allowed.
                number = 2
                while prompt.id in places:
                    prompt = dataclasses.replace(prompt, id=f"{prompt.id.partition('-')[0]}-{number}")
                    number += 1
            if prompt.id in places:
                raise PlamoError(
                    f"{where}: the id {prompt.id!r} is also the id of {places[prompt.id]}: ids must be unique"
                )
            places[prompt.id] = where
            prompts.append(prompt)
    if not prompts:
        raise PlamoError(f"{', '.join(map(str, files))}: there is no prompt. At least one is needed")
    return prompts


def to_prompt(fields: Mapping[str, Any], where: str, rules: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a record.

    Raises:
        UnreadableRecord: the record has no prompt.
        RuleError: a rule is unknown or malformed.
    """
    fields = forms.present(fields)
    name = forms.asked_in(fields)
    question = forms.question_messages(fields) if name is None else None
    if question is not None:
        messages, used = question
    elif name is not None:
        messages, used = read_messages(fields[name], name), {name}
    else:
        forms.refuse_empty_question(fields)
        names = f"{', '.join(forms.QUESTIONS[:-1])}, {forms.CONVERSATIONS[0]} and {forms.CONVERSATIONS[1]}"
        raise UnreadableRecord("no prompt", f"neither a field prompt nor messages: a record must have one of {names}")
    messages = check_messages(forms.with_system(fields, messages))
    if name is not None:
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        messages = messages[: answers[-1]] if answers else messages
    # Marks of what is trained on have no effect here.
    messages = tuple({name: value for name, value in message.items() if name != "train"} for message in messages)
    if messages[-1]["role"] == "assistant":
        raise UnreadableRecord("answered already", "the last message of a prompt must not be the assistant's")
    if messages[-1]["role"] == "system":
        raise UnreadableRecord("no question", "the last message of a prompt must not be the system's")
    rest = forms.further_fields(fields, used | _TAKEN)
    own = fields.get("rules", {})
    merged = {**rules, **own} if isinstance(own, Mapping) else own
    if isinstance(merged, Mapping):
        merged = {name: value for name, value in merged.items() if value is not None}
    check_rules(merged)
    name = fields.get("id")
    if name is None:
        content = json.dumps([messages, rest, merged], ensure_ascii=False, sort_keys=True)
        name = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    elif not isinstance(name, str) or not name:
        raise UnreadableRecord("bad id", f"{shown(name)}; it must be a text that is not empty")
    return Prompt(name, messages, merged, where, rest)


def drop_alike(prompts: Sequence[Prompt], threshold: float | None) -> tuple[list[Prompt], dict[str, str]]:
    """Omit prompts that repeat an earlier prompt.

    Args:
        prompts: the prompts in order. The first of several similar prompts is kept.
        threshold: Jaccard similarity of character 5-grams from which two prompts are similar (see `data.dedup`); None: keep all.

    Returns:
        The kept prompts, and the id of the earlier prompt for each omitted id.
    """
    if threshold is None:
        return list(prompts), {}
    texts = ["\n".join(message["content"] for message in prompt.messages) for prompt in prompts]
    first = duplicates_of(texts, DedupConfig(threshold))
    dropped = {prompt.id: prompts[first[i]].id for i, prompt in enumerate(prompts) if first[i] != i}
    return [prompt for i, prompt in enumerate(prompts) if first[i] == i], dropped


def digest(prompts: Iterable[Prompt]) -> str:
    """Return the BLAKE2b fingerprint of all prompts and their rules."""
    found = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        content = [prompt.id, prompt.messages, dict(prompt.rules), dict(prompt.variables)]
        found.update(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()


def is_heldout(id: str, share: float) -> bool:
    """Return whether a prompt is held out. This depends on its id alone, so it is the same in every run and every round."""
    hashed = hashlib.blake2b(b"held out:" + id.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "big") < share * 2**64
