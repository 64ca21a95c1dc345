"""Progress bars: a tqdm bar on a terminal, a plain line every few seconds in a log file.

A bar redraws its line with carriage returns, which would fill the log of a SLURM or CI job.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import std

INTERVAL = 30.0
"""Seconds between two lines if standard error is not a terminal. Shorter work prints nothing."""


class tqdm(std.tqdm):
    """A `tqdm.tqdm` bar that prints a line of text every INTERVAL seconds, and one at the end, if its file is not a terminal."""

    def __init__(self, *args: Any, **kwargs: Any):
        file = kwargs.get("file") or sys.stderr
        self._plain = not getattr(file, "isatty", bool)()
        self._last_line = time.monotonic()
        self._printed: float | None = None
        if self._plain:
            kwargs |= {"mininterval": INTERVAL, "maxinterval": INTERVAL, "delay": INTERVAL, "dynamic_ncols": False}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the state of the bar."""
        if not self._plain:
            return super().display(msg, pos)
        # Some callers refresh many times per second. The tolerance allows for the difference between tqdm's clock and this one.
        if time.monotonic() - self._last_line >= 0.9 * INTERVAL:
            self._print_line()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Remove the bar from the terminal for other output. Printed lines stay."""
        if not self._plain:
            super().clear(nolock)

    def close(self) -> None:
        """Close the bar. In a log, print the last state if lines were printed before."""
        if not getattr(self, "_plain", False):
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)
            if self._printed not in (None, self.n):
                self._print_line()

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self.n
        known = (
            "{n_fmt}/{total_fmt} {unit} ({percentage:.0f} %), {rate_fmt}, {elapsed} elapsed, {remaining} left{postfix}"
        )
        unknown = "{n_fmt} {unit}, {rate_fmt}, {elapsed} elapsed{postfix}"
        form = self.bar_format or "{desc}: " + (known if self.total else unknown)
        line = self.format_meter(**{**self.format_dict, "ncols": None, "bar_format": form})
        self.fp.write(line.strip() + "\n")
        self.fp.flush()
