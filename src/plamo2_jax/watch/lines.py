"""Log lines of `plamo2 watch` without a terminal: text, or one JSON object per line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from plamo2_jax.watch.alerts import alerts, duration
from plamo2_jax.watch.project import Snapshot
from plamo2_jax.watch.screen import printable
from plamo2_jax.watch.status import RunStatus, as_json


class LineWriter:
    """Turn snapshots into lines. A run has a new line when its step or its alerts have changed, a stage when it starts or ends.

    Args:
        is_json: Write JSON objects instead of text.
        stall_seconds: See `alerts.alerts`.
    """

    def __init__(self, is_json: bool, stall_seconds: float):
        self._json, self._stall_seconds = is_json, stall_seconds
        self._seen: dict[str, object] = {}

    def lines(self, snapshot: Snapshot) -> Iterator[str]:
        """Yield the lines for the changes since the last snapshot."""
        for stage in snapshot.stages:
            if self._is_new(f"stage {stage.name}", stage.status):
                after = {"started": "", "finished": " in ", "failed": " after "}[stage.status]
                text = f"stage {stage.name}: {stage.status}{after}" + (duration(stage.seconds) if after else "")
                content = {"stage": stage.name, "status": stage.status, "seconds": stage.seconds}
                yield json.dumps(content) if self._json else _stamped(text)
        for run in ([] if snapshot.run is None else [snapshot.run]) + list(snapshot.others):
            found = alerts(run, self._stall_seconds)
            progressed = self._is_new(f"run {run.folder}", (run.step, run.complete))
            alerted = self._is_new(f"alerts {run.folder}", [alert.kind for alert in found])
            if self._json:
                if progressed or alerted:
                    yield as_json(run, [alert.sentence for alert in found])
                continue
            if progressed:
                yield _stamped(as_text(run))
            if alerted:
                yield from (_stamped(f"{printable(run.name)}: alert: {alert.sentence}") for alert in found)

    def _is_new(self, name: str, value: object) -> bool:
        known = name in self._seen and self._seen[name] == value
        self._seen[name] = value
        return not known


def as_text(status: RunStatus) -> str:
    """Return the status of a run on one line."""
    newest = status.newest
    total = f"/{status.steps:,} ({status.step / status.steps:.0%})" if status.steps else ""
    parts = [f"{printable(status.name)}: step {status.step:,}{total}"]
    if status.losses:
        parts.append(f"loss {status.losses[-1]:.4f}")
    known = (
        ("bits/byte", "bits_per_byte", "{:.3f}"),
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("MFU", "mfu", "{:.1%}"),
        ("goodput", "goodput", "{:.1%}"),
    )
    parts += [f"{label} {form.format(newest[name])}" for label, name, form in known if name in newest]
    parts += [f"{printable(name)} {value:.4f}" for name, (value, _) in list(status.heldout.items())[:6]]
    if status.complete:
        parts.append("complete")
    elif status.seconds_left is not None:
        parts.append(f"about {duration(status.seconds_left)} left")
    return ", ".join(parts)


def _stamped(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
