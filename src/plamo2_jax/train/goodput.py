"""Goodput: the share of a run's time that was spent on steps that count."""

from __future__ import annotations

import os
import time
from pathlib import Path

from plamo2_jax.checkpoint import write_json
from plamo2_jax.json_input import read_json_object
from plamo2_jax.storage import located

GOODPUT = "goodput.json"


class Goodput:
    """Time spent on steps that count, divided by the time since the first start of the run.

    Restarts, compilation, evaluation, saving, lost steps, rollbacks and time without a running process reduce it. The time of the first
    start is kept in the run's folder.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        path = located(folder) / GOODPUT
        self._first_start = _first_start(path)
        if self._first_start is None:
            self._first_start = time.time()
            write_json(path, {"first_start": self._first_start})

    def share(self, seconds: float) -> float:
        """Return the goodput, between 0 and 1. `seconds` is the time spent on the steps in the log."""
        return min(1.0, seconds / max(time.time() - self._first_start, 1e-9))


def _first_start(path: Path) -> float | None:
    """Read the time of the first start, in seconds since 1970, from goodput.json; None if the file is missing or invalid."""
    try:
        start = read_json_object(path).get("first_start")
    except (OSError, ValueError):
        return None
    known = isinstance(start, int | float) and not isinstance(start, bool) and 0 < start <= time.time()
    return float(start) if known else None
