"""Documents, and statistics of records that could not be read as documents.

A record that is not a document (invalid UTF-8, not JSON, no text, ...) is counted by reason, and the first few are kept with file and line.
Reading continues until the share of bad records exceeds a limit. Then it fails, because the data or the options must be wrong.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require

KEPT = 20
"""Number of bad records that a report keeps, and of notes that it prints."""


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


def json_line(record: Mapping[str, Any]) -> bytes:
    """Return a JSON object as a line in UTF-8, with its newline."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class UnreadableRecord(PlamoError):
    """A record cannot be read. Readers raise or yield it, and `ReadReport` counts it.

    Attributes:
        reason: Kind of the problem, for counting, such as "not JSON".
        detail: Details of the problem; may be empty.
    """

    def __init__(self, reason: str, detail: str = ""):
        shown = detail if len(detail) <= 240 else f"{detail[:240]}..."
        # The name of a field may hold any characters.
        shown = shown.encode("utf-8", "backslashreplace").decode()
        super().__init__(f"{reason} ({shown})" if shown else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type[UnreadableRecord], tuple[str, str]]:
        # Exceptions are pickled with the message as their only argument.
        return UnreadableRecord, (self.reason, self.detail)


class TooManyBadRecordsError(PlamoError):
    """The share of bad records exceeds the limit."""


@dataclass
class ReadReport:
    """Statistics of reading, updated while the reader's iterator runs.

    Attributes:
        max_bad_rate: Largest allowed share of bad records. It is checked at the end, and at each bad record after `judge_after` records.
        judge_after: Number of records from which the share is meaningful.
        records: Number of records, including bad ones.
        reasons: Number of bad records by reason.
        first: Place, reason and detail of the first bad records, at most KEPT.
        changes: Changes of good records that lose information, such as omitted fields, with their counts.
        notes: Number of skipped files and folders; the first few are printed on stderr.
        quiet: Print no notes.
    """

    max_bad_rate: float = 0.01
    judge_after: int = 1000
    records: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    notes: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        require(self, "max_bad_rate", 0 <= self.max_bad_rate <= 1, "between 0 and 1")
        require(self, "judge_after", self.judge_after >= 1, "at least 1")

    @property
    def bad(self) -> int:
        """Number of bad records."""
        return self.reasons.total()

    def note(self, text: str) -> None:
        """Print on stderr that something was skipped. After KEPT notes, print once that there are more."""
        self.notes += 1
        if not self.quiet and self.notes <= KEPT + 1:
            print(f"skipped: {text}" if self.notes <= KEPT else "skipped: and more", file=sys.stderr)

    def count_bad(self, place: str, error: UnreadableRecord) -> None:
        """Count a record that cannot be read.

        Args:
            place: File and line, row or record, such as "a.jsonl, line 3".
            error: Reason.

        Raises:
            TooManyBadRecordsError: The share of bad records exceeds the limit, after `judge_after` records.
        """
        self.records += 1
        self.reasons[error.reason] += 1
        record = f"{place}: {error}"
        if len(self.first) < KEPT:
            self.first.append(record)
        if self.records >= self.judge_after:
            self.judge(record)

    def judge(self, example: str | None = None) -> None:
        """Check the share of bad records. Readers call this at the end.

        Raises:
            TooManyBadRecordsError: The share exceeds the limit. The message has the file and line of a bad record and the counts.
        """
        if self.bad > self.max_bad_rate * self.records:
            raise TooManyBadRecordsError(
                f"{example or self.first[0]}; this is one of {self.bad} bad records among {self.records} "
                f"({self.bad / self.records:.2%}): at most {self.max_bad_rate:.2%} are allowed"
            )

    def add(self, part: PartReport) -> None:
        """Count the records of the next part of the input, as if they had been read one by one.

        Raises:
            TooManyBadRecordsError: The share of bad records exceeds the limit, after `judge_after` records.
        """
        start = self.records
        for before, place, error in part.bad_records:
            self.records = start + before
            self.count_bad(place, error)
        self.records = start + part.records
        self.changes.update(part.changes)

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the reasons, the first bad records and the losses in good records as JSON."""
        return {
            "records": self.records,
            "bad": self.bad,
            "reasons": dict(sorted(self.reasons.items())),
            "first": self.first,
            **({"changes": dict(sorted(self.changes.items()))} if self.changes else {}),
        }

    def summary(self) -> str:
        """Return a line for a log."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items()))
        changes = "".join(f"; {change}: {count}" for change, count in self.changes.most_common(10))
        return f"read {self.records} records, {self.bad} bad" + (f": {reasons}" if reasons else "") + changes


@dataclass
class PartReport(ReadReport):
    """Statistics of a part of the input, from a worker process. `ReadReport.add` counts them and judges the share of bad records.

    Attributes:
        bad_records: Number of records before each bad record, its place and its reason.
    """

    bad_records: list[tuple[int, str, UnreadableRecord]] = field(default_factory=list)

    def count_bad(self, place: str, error: UnreadableRecord) -> None:
        """Note a record that cannot be read."""
        self.bad_records.append((self.records, place, error))
        self.records += 1

    def judge(self, example: str | None = None) -> None:
        """Do nothing, because a part of the input may have a larger share of bad records."""
