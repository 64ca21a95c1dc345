"""Documents, and statistics of records that could not be read as documents.

A record that is not a document (invalid UTF-8, not JSON, no text, ...) is counted by reason, and the first few are kept with file and line.
Reading continues until the share of bad records exceeds a limit. Then it fails, since the data or the options must be wrong.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: Text, valid Unicode and not empty.
        id: Name of the document in messages; unique if the user's ids are unique.
        meta: All other fields of the record, JSON values by name. Only "language" is used.
        pair: Key of a pair, such as a page and its translation. All documents of a pair are on the same side of a held-out split.
    """

    text: str
    id: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    pair: str = ""

    @property
    def language(self) -> str:
        """The declared language, or "unknown"."""
        language = self.meta.get("language")
        return language if isinstance(language, str) and language else "unknown"

    def to_json(self) -> dict[str, Any]:
        """Return the document as a JSON object: id, text and the fields of `meta`."""
        return {"id": self.id, "text": self.text, **{k: v for k, v in self.meta.items() if k not in ("id", "text")}}


@dataclass(frozen=True)
class BadRecord:
    """A record that is not a document.

    Attributes:
        place: File and line, row or record, such as "a.jsonl, line 3".
        reason: Kind of the problem, for counting, such as "not JSON".
        detail: Details of the problem; may be empty.
    """

    place: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        detail = self.detail if len(self.detail) <= 240 else f"{self.detail[:240]}..."
        # The name of a field may hold any characters.
        detail = detail.encode("utf-8", "backslashreplace").decode()
        return f"{self.place}: {self.reason}" + (f" ({detail})" if detail else "")


class UnreadableRecord(PlamoError):
    """A record cannot be read. Readers raise or yield it, and `ReadReport` counts it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class TooManyBadRecordsError(PlamoError):
    """The share of bad records exceeds the limit."""


@dataclass
class ReadReport:
    """Statistics of reading, updated while the reader's iterator runs.

    Attributes:
        max_bad_rate: Largest allowed share of bad records. It is checked at the end, and at each bad record after `judge_after` records.
        judge_after: Number of records from which the share is meaningful.
        keep: Number of bad records to keep in `first`.
        records: Number of records, including bad ones.
        reasons: Number of bad records by reason.
        first: The first `keep` bad records.
        files: Number of files read to their end.
        changes: Losses in good records, such as omitted fields, with their counts.
        notes: Number of skipped files and folders; the first few are printed on stderr.
        quiet: Print no notes.
    """

    max_bad_rate: float = 0.01
    judge_after: int = 1000
    keep: int = 20
    records: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[BadRecord] = field(default_factory=list)
    files: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    notes: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_rate <= 1:
            raise PlamoError(f"max_bad_rate={self.max_bad_rate} is not allowed: it must be between 0 and 1")
        for name, least in (("judge_after", 1), ("keep", 1)):
            if getattr(self, name) < least:
                raise PlamoError(f"{name}={getattr(self, name)} is not allowed: it must be at least {least}")

    @property
    def bad(self) -> int:
        """Number of bad records."""
        return self.reasons.total()

    def note(self, text: str) -> None:
        """Print on stderr that something was skipped. After `keep` notes, print once that there are more."""
        self.notes += 1
        if not self.quiet and self.notes <= self.keep + 1:
            print(f"skipped: {text}" if self.notes <= self.keep else "skipped: and more", file=sys.stderr)

    def count_good(self) -> None:
        """Count a record that is a document."""
        self.records += 1

    def count_bad(self, record: BadRecord) -> None:
        """Count a record that is not a document.

        Raises:
            TooManyBadRecordsError: The share of bad records exceeds the limit, after `judge_after` records.
        """
        self.records += 1
        self.reasons[record.reason] += 1
        if len(self.first) < self.keep:
            self.first.append(record)
        if self.records >= self.judge_after:
            self.judge(record)

    def judge(self, example: BadRecord | None = None) -> None:
        """Check the share of bad records. Readers call this at the end.

        Raises:
            TooManyBadRecordsError: The share exceeds the limit. The message has the file and line of a bad record and the counts.
        """
        if self.bad > self.max_bad_rate * self.records:
            raise TooManyBadRecordsError(
                f"{example or self.first[0]}; this is one of {self.bad} bad records among {self.records} "
                f"({self.bad / self.records:.2%}): at most {self.max_bad_rate:.2%} are allowed"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the reasons, the first bad records and the losses in good records as JSON."""
        return {
            "records": self.records,
            "bad": self.bad,
            "reasons": dict(sorted(self.reasons.items())),
            "first": [str(record) for record in self.first],
            **({"changes": dict(sorted(self.changes.items()))} if self.changes else {}),
        }

    def summary(self) -> str:
        """Return a line for a log."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items()))
        changes = "".join(f"; {change}: {count}" for change, count in self.changes.most_common(10))
        return f"read {self.records} records, {self.bad} bad" + (f": {reasons}" if reasons else "") + changes


def place(path: str | Path, unit: str, number: int) -> str:
    """Return the place of a record, such as "a.jsonl, line 3". Lines, rows and records count from 1."""
    return f"{path}, {unit} {number}"
