"""Documents, and the account of records that could not be read as one.

A record of a user's file that is not a document (invalid UTF-8, not JSON, no text, ...) is counted by reason and the first few
are kept with file and line. Reading goes on, unless more than a set share of the records is bad: then something is wrong with
the data or with how it is read, and reading fails.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: valid Unicode, not empty.
        id: names the document in messages; unique as far as the user's own ids are.
        meta: whatever else the record holds, JSON values by name; "language" is the one that is used.
        pair: documents of one pair are on the same side of a held-out split; empty for none.
    """

    text: str
    id: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    pair: str = ""

    @property
    def language(self) -> str:
        """The declared language, "unknown" where none is."""
        language = self.meta.get("language")
        return language if isinstance(language, str) and language else "unknown"

    def to_json(self) -> dict[str, Any]:
        """`{"id", "text", ...meta}`."""
        return {"id": self.id, "text": self.text, **{k: v for k, v in self.meta.items() if k not in ("id", "text")}}


@dataclass(frozen=True)
class BadRecord:
    """A record that is not a document.

    Attributes:
        place: file and line, row or record, such as "a.jsonl, line 3".
        reason: one of a few words, to count by: "not JSON".
        detail: the particulars; may be empty.
    """

    place: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        detail = self.detail if len(self.detail) <= 240 else f"{self.detail[:240]}..."
        # The name of a field may hold anything.
        detail = detail.encode("utf-8", "backslashreplace").decode()
        return f"{self.place}: {self.reason}" + (f" ({detail})" if detail else "")


class UnreadableRecord(ValueError):
    """Raised by a reader for one record; `ReadReport` counts it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class TooManyBadRecordsError(ValueError):
    """More of the records are bad than is allowed."""


@dataclass
class ReadReport:
    """What reading found; filled in while the reader's iterator runs.

    Attributes:
        max_bad_rate: share of bad records above which reading fails, judged at the end, and from `judge_after` records on
            at each bad one.
        judge_after: records from which the rate means something.
        keep: bad records kept verbatim in `first`.
        records: records seen, bad ones included.
        reasons: bad records by reason.
        first: the first `keep` bad records.
        files: files read to their end.
        changes: what was lost of good records, such as fields left out, and how often.
        notes: files and folders that were skipped; the first few are printed on stderr at once.
        quiet: print no notes.
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
            raise ValueError(f"max_bad_rate is {self.max_bad_rate}; it must lie between 0 and 1")
        for name, least in (("judge_after", 1), ("keep", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def bad(self) -> int:
        """Bad records seen."""
        return self.reasons.total()

    def note(self, text: str) -> None:
        """Print on stderr that something was skipped: `keep` notes at most, and that there are more."""
        self.notes += 1
        if not self.quiet and self.notes <= self.keep + 1:
            print(f"skipped: {text}" if self.notes <= self.keep else "skipped: and more", file=sys.stderr)

    def count_good(self) -> None:
        """A record was a document."""
        self.records += 1

    def count_bad(self, record: BadRecord) -> None:
        """A record was not a document.

        Raises:
            TooManyBadRecordsError: the rate is above what is allowed, and enough records were seen to say so.
        """
        self.records += 1
        self.reasons[record.reason] += 1
        if len(self.first) < self.keep:
            self.first.append(record)
        if self.records >= self.judge_after:
            self.judge(record)

    def judge(self, example: BadRecord | None = None) -> None:
        """Fail if too many records were bad; to be called at the end of reading.

        Raises:
            TooManyBadRecordsError: one sentence with a record's file and line, the counts and what is allowed.
        """
        if self.bad > self.max_bad_rate * self.records:
            raise TooManyBadRecordsError(
                f"{example or self.first[0]}; this is one of {self.bad} bad records among {self.records} "
                f"({self.bad / self.records:.2%}), more than the {self.max_bad_rate:.2%} allowed"
            )

    def to_json(self) -> dict[str, Any]:
        """Counts, reasons, the first bad records, and what was lost of good ones."""
        return {
            "records": self.records,
            "bad": self.bad,
            "reasons": dict(sorted(self.reasons.items())),
            "first": [str(record) for record in self.first],
            **({"changes": dict(sorted(self.changes.items()))} if self.changes else {}),
        }

    def summary(self) -> str:
        """One line for a log."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items()))
        changes = "".join(f"; {change}: {count}" for change, count in self.changes.most_common(10))
        return f"read {self.records} records, {self.bad} bad" + (f": {reasons}" if reasons else "") + changes


def place(path: str | Path, unit: str, number: int) -> str:
    """Where a record lies, as in "a.jsonl, line 3"; lines, rows and records count from 1."""
    return f"{path}, {unit} {number}"
