"""What the stages after generation share: counts of records by reason, and the texts of a record."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

Stage = Literal["plan", "generate", "filter", "decontaminate", "deduplicate", "write", "mix"]
"""Stages in order."""
LATER: tuple[Stage, ...] = ("filter", "decontaminate", "deduplicate", "write", "mix")
"""Stages after generation."""


@dataclasses.dataclass
class StageReport:
    """Counts of a stage, updated while its iterator runs."""

    records_in: int = 0
    records_out: int = 0
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Number of refused records by reason."""

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        return {
            "records": {"in": self.records_in, "out": self.records_out},
            "refused": dict(sorted(self.refused.items())),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StageReport:
        """Return the counts of a JSON object that `to_json` made."""
        records = content["records"]
        return cls(records["in"], records["out"], collections.Counter(content["refused"]))

    def summary(self) -> str:
        """Return a line for a log."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.refused.most_common())
        return f"kept {self.records_out} of {self.records_in} records" + (f"; refused: {reasons}" if reasons else "")


def text_of(record: Mapping[str, Any]) -> str:
    """Return the text of a record, or the contents of all its messages, one after another."""
    if record.get("text") is not None:
        return str(record["text"])
    return "\n".join(str(message.get("content") or "") for message in record.get("messages") or ())


def answers_of(record: Mapping[str, Any]) -> str:
    """Return the text of a record, or the contents of its messages of the assistant, one after another."""
    if record.get("text") is not None:
        return str(record["text"])
    said = (message for message in record.get("messages") or () if message.get("role") == "assistant")
    return "\n".join(str(message.get("content") or "") for message in said)


def with_texts(record: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a copy of a record with a function applied to its text, or to the content of each message."""
    if record.get("text") is not None:
        return {**record, "text": change(record["text"])}
    messages = [
        {**message, "content": change(message["content"])} if isinstance(message.get("content"), str) else dict(message)
        for message in record.get("messages") or ()
    ]
    return {**record, "messages": messages}
