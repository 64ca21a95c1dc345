"""Watching a run: how long steps take, what the time went to, memory in use, a trace on request, and stacks when nothing moves."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from plamo2_jax.checkpoint import write_json
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.storage import Mirror, append, located

GOODPUT = "goodput.json"
STALLS = "stalls.txt"
PROFILE = "profile"


class StepClock:
    """Times of steps and of the waits for data in them. All times in seconds.

    Args:
        last: percentiles are over so many steps.
    """

    def __init__(self, last: int = 1000):
        self._recent: collections.deque[float] = collections.deque(maxlen=last)
        self.restart()

    def restart(self) -> None:
        """Start anew, after time that was not spent on steps."""
        self._since = time.perf_counter()
        self._waited = self._stepped = 0.0

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Around what makes the next batch and puts it onto the devices."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step(self) -> float:
        """A step is done: how long it took."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._recent.append(seconds)
        self._stepped += seconds
        return seconds

    def figures(self) -> dict[str, float]:
        """For the log: percentiles of step time, and the share of the time since `restart` that the host waited for data."""
        if not self._recent:
            return {}
        percentiles = np.percentile(self._recent, (50, 90, 99))
        names = ("step_seconds_p50", "step_seconds_p90", "step_seconds_p99")
        waited = min(1.0, self._waited / self._stepped) if self._stepped else 0.0
        return dict(zip(names, map(float, percentiles), strict=True)) | {"data_wait": waited}


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
        """Between 0 and 1, for so many seconds spent on the steps in the log."""
        return min(1.0, seconds / max(time.time() - self._first_start, 1e-9))


def _first_start(path: Path) -> float | None:
    """What a goodput.json says; None where there is none that can be true."""
    try:
        start = read_json_object(path).get("first_start")
    except (OSError, ValueError):
        return None
    known = isinstance(start, int | float) and not isinstance(start, bool) and 0 < start <= time.time()
    return float(start) if known else None


def memory_in_use(devices: Sequence[jax.Device]) -> dict[str, float]:
    """`hbm_bytes` in use and `hbm_peak_bytes` of the fullest of this process's devices; nothing where they do not tell (CPU)."""
    stats = [
        stats for device in devices if device.process_index == jax.process_index() and (stats := device.memory_stats())
    ]
    names = {"hbm_bytes": "bytes_in_use", "hbm_peak_bytes": "peak_bytes_in_use"}
    return {ours: float(max(stat.get(theirs, 0) for stat in stats)) for ours, theirs in names.items() if stats}


class StallWatchdog:
    """Writes the stacks of all threads, to stderr and to stalls.txt, when no step was done for too long; a context manager.

    It looks from the first `beat` on, so that compiling is no stall, and says each stall once. The process goes on: only its owner
    knows what it waits for.

    Args:
        folder: where stalls.txt goes.
        seconds: how long is too long.
    """

    def __init__(self, folder: str | os.PathLike[str], seconds: float):
        self._path = located(folder) / STALLS
        self._seconds = seconds
        self._beats = 0
        self._stalled = False
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._watch, name="stall watchdog", daemon=True)

    def __enter__(self) -> StallWatchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def beat(self) -> None:
        """Something moved."""
        with self._changed:
            self._beats += 1
            if self._beats == 1 or self._stalled:
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._beats)
            while not self._ended:
                seen = self._beats
                # Beats do not wake it: it looks again at its own pace, so a stall is seen after one to two times `seconds`.
                self._changed.wait(self._seconds)
                if self._beats == seen and not self._ended:
                    self._stalled = True
                    self._dump()
                    self._changed.wait_for(lambda seen=seen: self._ended or self._beats != seen)
                    self._stalled = False

    def _dump(self) -> None:
        line = f"no step for {self._seconds:g} s; the stacks of all threads are in {self._path}"
        print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())
            file.flush()
            faulthandler.dump_traceback(file)
            file.seek(0)
            append(self._path, file.read())
        with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be no real file.
            faulthandler.dump_traceback(sys.stderr)


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """Steps to trace."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> ProfileSteps:
        """From FIRST:LAST, both traced.

        Raises:
            ValueError: it is not that.
        """
        first, colon, last = text.partition(":")
        if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            raise PlamoError(
                f"profile={text!r} is not allowed: it must be FIRST:LAST, two steps from 1 on, such as 10:13"
            )
        return cls(int(first), int(last))


class Profiler:
    """Traces some steps into run/profile, for TensorBoard or XProf; a context manager, which ends a trace under way.

    Args:
        folder: the run's folder.
        steps: which; None traces none.
    """

    def __init__(self, folder: str | os.PathLike[str], steps: ProfileSteps | None):
        self._folder, self._steps = located(folder) / PROFILE, steps
        self._tracing = False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Begin the trace if this step is to be in it."""
        if self._steps and not self._tracing and self._steps.first <= step <= self._steps.last:
            self._mirror = Mirror(self._folder)
            jax.profiler.start_trace(self._mirror.folder)
            self._tracing = True

    def after(self, step: int, result: object) -> None:
        """End the trace if this step was the last in it, when its result is there."""
        if self._tracing and step >= self._steps.last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._mirror.close()
