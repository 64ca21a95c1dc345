"""Shared parts of fine-tuning and preference training: settings and checks of a run, and reports of reading."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.data.documents import ReadReport, TooManyBadRecordsError
from plamo2_jax.errors import PlamoError
from plamo2_jax.train.config import FREE, RunConfig
from plamo2_jax.validation import require

_SHOWN = 5
"""Number of bad records that are printed."""


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """Settings for reading records of conversations or answers."""

    template: str = "chat"
    """Chat template: `chat`, `translate`, a Jinja file, or a folder with chat_template.jinja. It is copied to the run folder."""
    max_bad_rate: float = dataclasses.field(default=0.01, metadata=FREE)
    """Largest allowed share of bad records. Bad records are skipped, and their number and the first few are printed. 0: the first bad
    record ends the run."""

    def __post_init__(self) -> None:
        require(self, "max_bad_rate", 0 <= self.max_bad_rate < 1, "in [0, 1)")

    def report(self) -> ReadReport:
        """Return a new report for reading one file."""
        return ReadReport(max_bad_rate=self.max_bad_rate, judge_after=1000 if self.max_bad_rate else 1)


def validate_post_training(run: RunConfig, lora: LoraConfig | None) -> None:
    """Raise PlamoError if a field of the run is for text only or for whole models only, or if adapters have no model."""
    if run.data.long_document_tokens is not None:
        raise PlamoError(
            f"data.long_document_tokens={run.data.long_document_tokens!r} is not allowed with task={type(run.task).__name__}: it must be "
            "none, because it is for text only"
        )
    if lora is not None and run.init_from is None:
        raise PlamoError(
            "init_from=None is not allowed with lora: it must name the model that the adapters are added to"
        )
    if lora is not None and run.linear_type != "normal":
        raise PlamoError(
            f"linear_type={run.linear_type!r} is not allowed with lora: it must be normal, because fp8 products are for matrices that are "
            "trained. Remove one of the two"
        )


@contextlib.contextmanager
def naming_limit(option: str) -> Iterator[None]:
    """Name the option that allows more bad records in the error of too many bad records."""
    try:
        yield
    except TooManyBadRecordsError as error:
        raise TooManyBadRecordsError(f"{error}. Correct the records, or raise {option}") from None


def require_records(path: Path, what: str, counts: Mapping[str, int], limit: int, remedy: str) -> None:
    """Raise PlamoError if the file has no record, or no record of at most `limit` tokens. `what` is the name of one record."""
    if counts.get("whole", 0) + counts.get("truncated", 0):
        return
    if counts.get("too long"):
        raise PlamoError(f"{path} has no {what} of at most {limit} tokens: {remedy}")
    raise PlamoError(f"{path} has no {what}: at least one is needed")


def log_record_counts(path: Path, what: str, counts: Mapping[str, int], report: ReadReport) -> None:
    """Print the number of records and the first bad ones on stderr of the first process."""
    if jax.process_index() == 0:
        others = [f"{counts[name]:,} {name}" for name in ("truncated", "too long") if counts.get(name)]
        others += [f"{report.bad:,} bad"] if report.bad else []
        kept = counts.get("whole", 0) + counts.get("truncated", 0)
        print(", ".join([f"{path}: {kept:,} {what}", *others]), file=sys.stderr)
        for record in report.first[:_SHOWN]:
            print(f"  {record}", file=sys.stderr)
        if report.bad > _SHOWN:
            print(f"  and {report.bad - _SHOWN:,} more bad records", file=sys.stderr)
        for change, count in report.changes.most_common(_SHOWN):
            print(f"  {change}: {count:,} times", file=sys.stderr)
