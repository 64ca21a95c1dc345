"""`plamo2 watch RUN`: follow a training run or a pipeline in the terminal."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call
from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.watch.project import FolderWatch

_BUCKET_SECONDS = 30.0
"""Shortest time between two reads from a bucket: the log is uploaded only with each checkpoint."""


def watch(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    every: float = 2.0,
    once: bool = False,
    log_format: Literal["text", "json"] = "text",
    stall_seconds: float = 120.0,
) -> int:
    """Follow a training run: loss, speed, time left, held-out metrics, samples, checkpoints and alerts.

    On a terminal, the command redraws a table until the run is complete. Ctrl-C ends the command, not the run. Otherwise it prints a line
    for each new step in the log. It warns about a stalled run, skipped updates (NaN), loss spikes, a full disk and a slow input pipeline.

    Args:
        folder: A run folder, the home of a pipeline, or a folder of runs. A run in a bucket (gs://BUCKET/FOLDER) is read every 30 s.
        every: Time between two reads, in seconds.
        once: Print the current status once.
        log_format: text: the table, or lines. json: one JSON object per line.
        stall_seconds: Time without a new step after which the run counts as stalled, in seconds.
    """
    from plamo2_jax.storage import is_remote
    from plamo2_jax.watch.lines import LineWriter
    from plamo2_jax.watch.project import FolderWatch

    for name, value in (("every", every), ("stall-seconds", stall_seconds)):
        if not 0 < value < math.inf:
            raise PlamoError(f"--{name} {value} is not allowed: it must be positive and finite")
    found = FolderWatch(folder)
    pause = max(every, _BUCKET_SECONDS) if is_remote(folder) else every
    # A dumb terminal cannot redraw a table.
    if log_format == "text" and sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb", "unknown"):
        _show(found, pause, once, stall_seconds)
        return 0
    writer = LineWriter(log_format == "json", stall_seconds)
    try:
        while True:
            snapshot = found.read()
            for line in writer.lines(snapshot):
                print(line, flush=True)
            if once or snapshot.complete:
                return 0
            time.sleep(pause)
    except KeyboardInterrupt:
        return 0


def _show(found: FolderWatch, pause: float, once: bool, stall_seconds: float) -> None:
    """Draw the table until the run is complete."""
    from rich.console import Console
    from rich.live import Live

    from plamo2_jax.watch.screen import render

    console = Console()
    if once:
        console.print(render(found.read(), stall_seconds))
        return
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                snapshot = found.read()
                live.update(render(snapshot, stall_seconds), refresh=True)
                if snapshot.complete:
                    return
                time.sleep(pause)
    except KeyboardInterrupt:
        pass


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""
    return call(watch, argv, "plamo2 watch")
