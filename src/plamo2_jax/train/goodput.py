"""Goodput: the share of a run's time that was spent on steps that count."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from plamo2_jax.checkpoint import write_json
from plamo2_jax.json_input import read_json_object
from plamo2_jax.storage import located

GOODPUT = "goodput.json"
TIERS = ("persistent", "local")
"""Kinds of checkpoints."""


class Goodput:
    """Time spent on steps that count, divided by the time since the first start of the run.

    Restarts, compilation, evaluation, saving, lost steps, rollbacks and time without a running process reduce it. The time of the first
    start is kept in the run's folder, with the losses of all restarts by tier: number of restores, seconds to read the checkpoints, and
    the steps that were repeated, with the seconds that they took the first time. Repeated steps are counted as far as the log of the
    interrupted process has them.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._path = located(folder) / GOODPUT
        content = _read(self._path)
        start = content.get("first_start")
        known = isinstance(start, int | float) and not isinstance(start, bool) and 0 < start <= time.time()
        self._first_start = float(start) if known else time.time()
        self._restores = _restores(content.get("restores"))
        if not known:
            self._write()

    def share(self, seconds: float) -> float:
        """Return the goodput, between 0 and 1. `seconds` is the time spent on the steps in the log."""
        return min(1.0, seconds / max(time.time() - self._first_start, 1e-9))

    def add_restore(self, tier: str, seconds: float, repeated_steps: int, repeated_seconds: float) -> None:
        """Count one restore.

        Args:
            tier: Kind of the checkpoint, one of TIERS.
            seconds: Time to restore it.
            repeated_steps: Steps after the checkpoint that were already done.
            repeated_seconds: Time that they took.
        """
        added = {
            "restores": 1,
            "restore_seconds": seconds,
            "repeated_steps": repeated_steps,
            "repeated_seconds": repeated_seconds,
        }
        before = self._restores.get(tier, {})
        self._restores[tier] = {name: before.get(name, 0) + value for name, value in added.items()}
        self._write()

    def losses(self) -> dict[str, float]:
        """Return the losses of all restarts, `goodput_TIER_NAME`, for the log; empty if there were none."""
        return {
            f"goodput_{tier}_{name}": value for tier, sums in self._restores.items() for name, value in sums.items()
        }

    def _write(self) -> None:
        write_json(self._path, {"first_start": self._first_start, "restores": self._restores})


def _read(path: Path) -> dict[str, Any]:
    """Read goodput.json; an empty object if the file is missing or invalid."""
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def _restores(found: Any) -> dict[str, dict[str, float]]:
    """Return the losses by tier that a file records, without values that are not numbers."""
    tiers = found if isinstance(found, dict) else {}
    return {
        tier: {name: value for name, value in tiers[tier].items() if type(value) in (int, float) and value >= 0}
        for tier in TIERS
        if isinstance(tiers.get(tier), dict)
    }
