"""Alerts: problems of a run, in one sentence each."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Literal

from plamo2_jax.watch.status import RunStatus

_WINDOW = 100
"""Number of losses before a loss that it is compared with."""
_NEWEST = 50
"""Number of newest losses that are searched for a spike."""


@dataclasses.dataclass(frozen=True)
class Alert:
    """A problem of a run."""

    kind: Literal["stopped", "stalled", "skipped", "spike", "disk", "data"]
    sentence: str
    """Description with the present figures."""


def alerts(status: RunStatus, stall_seconds: float = 120.0) -> list[Alert]:
    """Return the alerts of a run, the most urgent first; none for a run without problems.

    Args:
        stall_seconds: Seconds without a new line in the log after which a run counts as stalled. It is at least ten times the usual time
            between two writes, because evaluations and checkpoints take time too.
    """
    found = []
    limit = max(stall_seconds, 10 * status.write_seconds)
    if not status.complete and status.age is not None and status.age > limit:
        sentence = (
            f"no new step for {duration(status.age)}: the run was stopped, has failed or is stalled. Run its "
            "command again to resume"
        )
        found.append(Alert("stopped", sentence))
    newest = status.newest.get("time")
    if status.stalled_at is not None and newest is not None and status.stalled_at > newest and not status.complete:
        found.append(Alert("stalled", "the run reported a stall: the stack traces of its threads are in stalls.txt"))
    if status.skipped:
        sentence = (
            f"{len(status.skipped)} of the latest updates were skipped, because the loss or gradient was NaN "
            f"or infinite (last: step {status.skipped[-1]}). Lower the learning rate or clip_norm"
        )
        found.append(Alert("skipped", sentence))
    if (spike := find_spike(status.losses)) is not None:
        loss, median = spike
        found.append(Alert("spike", f"loss spike: the loss rose to {loss:.3f}, from a median of {median:.3f}"))
    if (sentence := _disk(status)) is not None:
        found.append(Alert("disk", sentence))
    if (waiting := status.newest.get("data_wait", 0.0)) > 0.2:
        sentence = (
            f"{waiting:.0%} of the step time is spent waiting for data. Raise data.read_threads or "
            "data.prefetch_batches"
        )
        found.append(Alert("data", sentence))
    return found


def find_spike(losses: Sequence[float]) -> tuple[float, float] | None:
    """Return the newest spike of the loss and the median before it; None if there is none.

    A loss is a spike if it is above the median of the losses before it by ten times their median absolute deviation and by a tenth. So
    the usual noise of a task does not matter. There must be at least 20 losses before it.
    """
    for index in range(len(losses) - 1, max(len(losses) - 1 - _NEWEST, 19), -1):
        before = losses[max(0, index - _WINDOW) : index]
        median = statistics.median(before)
        deviation = statistics.median(abs(loss - median) for loss in before)
        if losses[index] > median + max(10 * deviation, 0.1 * abs(median)):
            return losses[index], median
    return None


def _disk(status: RunStatus) -> str | None:
    """Return an alert if the disk has no space for two more checkpoints, or less than 1 GB."""
    if status.free_bytes is None or status.complete:
        return None
    needed = max(2 * (status.checkpoint_bytes or 0), 10**9)
    if status.free_bytes >= needed:
        return None
    each = f"; a checkpoint takes {status.checkpoint_bytes / 1e9:.2f} GB" if status.checkpoint_bytes else ""
    return f"only {status.free_bytes / 1e9:.2f} GB are free on the disk{each}"


def duration(seconds: float) -> str:
    """Return a duration in words, such as 42 s, 5 min or 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours / 24:.1f} days"
