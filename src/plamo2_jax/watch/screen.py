"""The live table of `plamo2 watch` on a terminal."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from plamo2_jax.watch.alerts import alerts, duration
from plamo2_jax.watch.project import Snapshot
from plamo2_jax.watch.status import RunStatus

_BARS = "▁▂▃▄▅▆▇█"
_MOST_OTHERS, _MOST_HELDOUT = 12, 12


def render(snapshot: Snapshot, stall_seconds: float) -> RenderableType:
    """Return a snapshot as a page for the terminal."""
    parts: list[RenderableType] = []
    if snapshot.run is not None:
        parts.append(_run(snapshot.run, stall_seconds))
    if snapshot.stages:
        parts.append(_stages(snapshot))
    if snapshot.others:
        parts.append(_others(snapshot.others, stall_seconds))
    return Group(*parts)


def _run(status: RunStatus, stall_seconds: float) -> RenderableType:
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="bold")
    figures.add_column()
    for name, value in rows(status):
        figures.add_row(name, value)
    parts: list[RenderableType] = []
    if status.steps:
        bar = Table.grid()  # A bar alone would not end its line.
        bar.add_row(ProgressBar(total=status.steps, completed=min(status.step, status.steps), width=60))
        parts.append(bar)
    parts.append(figures)
    for sample in status.samples:
        parts += [Text(""), Text(f"> {printable(sample.prompt)}", style="dim"), Text(printable(sample.text))]
    found = alerts(status, stall_seconds)
    parts += [Text(f"! {alert.sentence}", style="bold red") for alert in found]
    title = Text(f"{printable(status.name)} ({status.kind or 'run'})")
    return Panel(Group(*parts), title=title, title_align="left", border_style="red" if found else "green")


def rows(status: RunStatus) -> list[tuple[str, str]]:
    """Return the figures of a run, as names and texts. Unknown figures are omitted."""
    newest = status.newest
    total = f" of {status.steps:,} ({status.step / status.steps:.0%})" if status.steps else ""
    found = [("step", f"{status.step:,}{total}")]
    if status.losses:
        found.append(("loss", f"{status.losses[-1]:.4f}  {sparkline(status.losses)}"))
    known = (
        ("bits per byte", "bits_per_byte", "{:.3f}"),
        ("accuracy", "accuracy", "{:.3f}"),
        ("gradient norm", "grad_norm", "{:.3f}"),
        ("learning rate", "learning_rate", "{:.3g}"),
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("MFU", "mfu", "{:.1%}"),
        ("goodput", "goodput", "{:.1%}"),
        ("data wait", "data_wait", "{:.1%}"),
    )
    found += [(label, form.format(newest[name])) for label, name, form in known if name in newest]
    if "hbm_peak_bytes" in newest:
        found.append(("device memory", f"{newest['hbm_peak_bytes'] / 1e9:.1f} GB at the peak"))
    if status.complete:
        found.append(("time left", "complete"))
    elif status.seconds_left is not None:
        found.append(("time left", f"about {duration(status.seconds_left)}"))
    if status.age is not None:
        found.append(("last update", f"{duration(status.age)} ago"))
    for name, (value, before) in list(status.heldout.items())[:_MOST_HELDOUT]:
        change = "" if before is None else f"  ({value - before:+.4f})"
        found.append((printable(name), f"{value:.4f}{change}"))
    if status.checkpoints:
        size = f", {status.checkpoint_bytes / 1e6:,.0f} MB each" if status.checkpoint_bytes else ""
        found.append(("checkpoints", ", ".join(f"{step:,}" for step in status.checkpoints[-5:]) + size))
    if status.free_bytes is not None:
        found.append(("disk", f"{status.free_bytes / 1e9:,.1f} GB free"))
    return found


def _stages(snapshot: Snapshot) -> RenderableType:
    table = Table(title="pipeline", title_justify="left", box=None, padding=(0, 2))
    table.add_column("stage")
    table.add_column("status")
    table.add_column("time", justify="right")
    for stage in snapshot.stages:
        if stage.status != "started":
            style = "red" if stage.status == "failed" else ""
            table.add_row(Text(stage.name), Text(stage.status, style=style), duration(stage.seconds))
        else:
            table.add_row(Text(stage.name, style="bold"), "started", f"{duration(stage.seconds)} ago")
    return table


def _others(statuses: Sequence[RunStatus], stall_seconds: float) -> RenderableType:
    table = Table(title="other runs", title_justify="left", box=None, padding=(0, 2))
    for name in ("run", "step", "loss", "last update"):
        table.add_column(name)
    table.add_column("alerts", style="red")
    for status in statuses[:_MOST_OTHERS]:
        loss = f"{status.losses[-1]:.4f}" if status.losses else ""
        age = "complete" if status.complete else "" if status.age is None else f"{duration(status.age)} ago"
        found = alerts(status, stall_seconds)
        step = f"{status.step:,}" + (f"/{status.steps:,}" if status.steps else "")
        table.add_row(Text(printable(status.name)), step, loss, age, Text(found[0].sentence if found else ""))
    if len(statuses) > _MOST_OTHERS:
        table.add_row(f"and {len(statuses) - _MOST_OTHERS} more", "", "", "", "")
    return table


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return a line of small bars, each the mean of some neighbouring values."""
    width = min(width, len(values))
    edges = [len(values) * index // width for index in range(width + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def printable(text: str) -> str:
    """Return a text on one line, without control characters, so that a sample cannot control the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)
