"""Measurement of step times and of the time spent waiting for data."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator

import numpy as np


class StepClock:
    """Measure step times and the time spent waiting for data, in seconds. Percentiles are over the `last` steps."""

    def __init__(self, last: int = 1000):
        self._recent: collections.deque[float] = collections.deque(maxlen=last)
        self.restart()

    def restart(self) -> None:
        """Restart, after time that was not spent on steps."""
        self._since = time.perf_counter()
        self._waited = self._stepped = 0.0

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Context manager to measure making a batch and putting it onto the devices."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step(self) -> float:
        """Record the end of a step, and return its time in seconds."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._recent.append(seconds)
        self._stepped += seconds
        return seconds

    def figures(self) -> dict[str, float]:
        """Return percentiles of the step time, and `data_wait`: the fraction of the time since `restart` spent waiting for data."""
        if not self._recent:
            return {}
        percentiles = np.percentile(self._recent, (50, 90, 99))
        names = ("step_seconds_p50", "step_seconds_p90", "step_seconds_p99")
        waited = min(1.0, self._waited / self._stepped) if self._stepped else 0.0
        return dict(zip(names, map(float, percentiles), strict=True)) | {"data_wait": waited}
