"""What fine-tuning and training on preferences share: checks of the run, reading records, and adapters."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.lora import with_adapters
from plamo2_jax.data.documents import ReadReport, TooManyBadRecordsError
from plamo2_jax.errors import PlamoError
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.task import TrainTask

_SHOWN = 5
"""Bad records that are printed."""


def validate_post_training(run: RunConfig, lora: LoraConfig | None) -> None:
    """Raise ValueError for fields of a run that only text has, and for adapters without a model to add them to."""
    if run.data.long_document_tokens is not None:
        raise PlamoError(
            f"data.long_document_tokens={run.data.long_document_tokens!r} is not allowed with task={type(run.task).__name__}: it must be "
            "none, since it is for text"
        )
    if lora is not None and run.init_from is None:
        raise PlamoError(
            "init_from=None is not allowed with lora: it must name the model that the adapters are added to"
        )


def add_lora(task: TrainTask, run: RunConfig, lora: LoraConfig | None, base: Any) -> TrainTask:
    """Return a task as one of adapters, where the run trains adapters.

    Args:
        task: trains the whole model.
        run: the run.
        lora: its adapters; None: the task comes back as it is.
        base: parameters of the model that adapters are added to.

    Raises:
        ValueError: no matrix is a target of `lora`.
    """
    return task if lora is None else with_adapters(task, Adapters(run.model, lora, run.seed), base)


@contextlib.contextmanager
def naming_limit(option: str) -> Iterator[None]:
    """Name the option that allows more bad records, where reading fails for them."""
    try:
        yield
    except TooManyBadRecordsError as error:
        raise TooManyBadRecordsError(f"{error}. Correct them, or raise {option}") from None


def log_record_counts(path: Path, what: str, counts: Mapping[str, int], report: ReadReport) -> None:
    """Print on stderr of the first process how many records were read, and the first bad ones."""
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
