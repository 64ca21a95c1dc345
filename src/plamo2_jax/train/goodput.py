"""The share of a run's time that went to steps that count."""

from __future__ import annotations

import os
import time
from pathlib import Path

from plamo2_jax.checkpoint import write_json
from plamo2_jax.json_input import read_json_object
from plamo2_jax.storage import located

GOODPUT = "goodput.json"


class Goodput:
    """Time spent on steps that count, over the time since the run was first started: restarts, compiling, evaluation, saving, steps
    that were lost or rolled back, and the time in which nobody ran it, all make it smaller.

    Args:
        folder: the run's folder, which keeps the time of the first start.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        path = located(folder) / GOODPUT
        self._first_start = _first_start(path)
        if self._first_start is None:
            self._first_start = time.time()
            write_json(path, {"first_start": self._first_start})

    def share(self, seconds: float) -> float:
        """Return the share, between 0 and 1. `seconds` is the time spent on the steps in the log."""
        return min(1.0, seconds / max(time.time() - self._first_start, 1e-9))


def _first_start(path: Path) -> float | None:
    """Read the time of the first start from goodput.json; None if the file is missing or cannot be right."""
    try:
        start = read_json_object(path).get("first_start")
    except (OSError, ValueError):
        return None
    known = isinstance(start, int | float) and not isinstance(start, bool) and 0 < start <= time.time()
    return float(start) if known else None
