"""Stopping between two steps when the process is asked to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax

from plamo2_jax.train import processes


class Preemption:
    """Context manager that notes SIGINT and SIGTERM instead of ending the process.

    The loop looks at `signal` after each step. A second signal of the same kind is handled as it was before, so that Ctrl-C twice
    still ends a process that hangs. Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, everyone_asks: bool) -> bool:
        """Return whether to stop now. Several processes may be signalled at different times, but must stop after the same step: they agree
        where all of them ask, and `signal` is the same in all of them from then on.

        Args:
            everyone_asks: whether all processes ask after this step; where not, only a job of one process stops.
        """
        if everyone_asks and jax.process_count() > 1:
            self.signal = processes.largest(self.signal or 0) or None
        return self.signal is not None and (everyone_asks or jax.process_count() == 1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
