"""What a policy is asked: prompts out of files, with the rules that their answers are checked by.

A record is `{"prompt": text or messages}`, or `{"messages": [...]}`, a conversation as for fine-tuning, whose prompt is what comes before
its last answer; `forms` says which other fields hold the same. It may have an `id` and `rules`; further fields are variables of the
chat template, and are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.align.chat import read_records
from plamo2_jax.align.forms import (
    CONVERSATIONS,
    LABELS,
    QUESTIONS,
    asked_in,
    further_fields,
    present,
    question_messages,
    refuse_empty_question,
    with_system,
)
from plamo2_jax.align.messages import check_messages, read_messages, shown
from plamo2_jax.align.preference_data.rules import RuleError, check_rules
from plamo2_jax.data.dedup import DedupConfig, DedupReport, deduplicate
from plamo2_jax.data.documents import ReadReport, UnreadableRecord
from plamo2_jax.errors import PlamoError

# Fields that are the program's to write.
_TAKEN = {"id", "prompt", "messages", "rules", "chosen", "rejected", "completion", "provenance", *LABELS}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One thing to ask."""

    id: str
    """Unique among the prompts of a run."""
    messages: tuple[Mapping[str, Any], ...]
    """Up to what is to be answered."""
    rules: Mapping[str, Any]
    """See `rules`."""
    place: str
    """File and line."""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the chat template."""

    @property
    def text(self) -> str:
        """All that was said, for likeness."""
        return "\n".join(message["content"] or "" for message in self.messages)


def read_prompts(files: Iterable[str | Path], rules: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of files, folders and patterns, in order.

    Args:
        files: JSON lines, Parquet or ArrayRecord.
        rules: those of every prompt; a line's own come on top, and null takes one away.

    Raises:
        ValueError: a line is no prompt, a rule is unknown or malformed, or two prompts have the same id; with file and line.
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
                # The same prompt without an id of its own may come again.
                number = 2
                while prompt.id in places:
                    prompt = dataclasses.replace(prompt, id=f"{prompt.id.partition('-')[0]}-{number}")
                    number += 1
            if prompt.id in places:
                raise PlamoError(f"{where}: the id {prompt.id!r} is that of {places[prompt.id]} too")
            places[prompt.id] = where
            prompts.append(prompt)
    if not prompts:
        raise PlamoError(f"{', '.join(map(str, files))}: there is no prompt")
    return prompts


def to_prompt(fields: Mapping[str, Any], where: str, rules: Mapping[str, Any]) -> Prompt:
    """The prompt of a record.

    Raises:
        UnreadableRecord: it has none.
        RuleError: its rules are not right.
    """
    fields = present(fields)
    name = asked_in(fields)
    question = question_messages(fields) if name is None else None
    if question is not None:
        messages, used = question
    elif name is not None:
        messages, used = read_messages(fields[name], name), {name}
    else:
        refuse_empty_question(fields)
        names = f"{', '.join(QUESTIONS[:-1])}, {CONVERSATIONS[0]} and {CONVERSATIONS[1]}"
        raise UnreadableRecord("no prompt", f"neither a field prompt nor messages; it must have one of {names}")
    messages = check_messages(with_system(fields, messages))
    if name is not None:
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        messages = messages[: answers[-1]] if answers else messages
    # What is not trained on does not matter here.
    messages = tuple({name: value for name, value in message.items() if name != "train"} for message in messages)
    if messages[-1]["role"] == "assistant":
        raise UnreadableRecord("answered already", "the last message of a prompt must not be the assistant's")
    if messages[-1]["role"] == "system":
        raise UnreadableRecord("no question", "the last message of a prompt must not be the system's")
    rest = further_fields(fields, used | _TAKEN)
    own = {} if fields.get("rules") is None else fields["rules"]
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
    """Prompts that repeat no earlier one, and of those that do, by id, the id of the one they repeat.

    Args:
        prompts: in order; the first of a group stays.
        threshold: Jaccard similarity of character 5-grams from which two are alike (see `data.dedup`); None: none is.
    """
    if threshold is None:
        return list(prompts), {}
    report = DedupReport()
    records = ({"id": prompt.id, "text": prompt.text} for prompt in prompts)
    kept = {record["id"] for record in deduplicate(records, DedupConfig(threshold), report, len(prompts), False)}
    dropped = {found.id: found.duplicate_of for found in (*report.exact, *report.near)}
    return [prompt for prompt in prompts if prompt.id in kept], dropped


def digest(prompts: Iterable[Prompt]) -> str:
    """BLAKE2b of all that is asked and of how answers are checked."""
    found = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        content = [prompt.id, prompt.messages, dict(prompt.rules), dict(prompt.variables)]
        found.update(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()


def is_heldout(id: str, share: float) -> bool:
    """Whether a prompt is held out: by its id alone, so that it is in every run and every round."""
    number = int.from_bytes(
        hashlib.blake2b(b"held out:" + id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
    return number < share * 2**64
