"""Preemption: stopping between two steps after a signal."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax

from plamo2_jax.train import processes


class Preemption:
    """Context manager that records SIGINT and SIGTERM instead of ending the process.

    The loop reads `signal` after each step. A second signal of the same kind has its usual effect, so pressing Ctrl-C twice ends a process
    that hangs. Outside the main thread, where Python allows no handlers, no signal is caught.
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

    def should_stop(self, all_call: bool) -> bool:
        """Return whether to stop after this step.

        Several processes may get a signal at different times, but must stop after the same step. So they exchange their signals, and stop,
        only after steps at which all of them call this with `all_call`. `signal` is then the same in all of them.
        """
        if all_call and jax.process_count() > 1:
            self.signal = processes.largest(self.signal or 0) or None
        return self.signal is not None and (all_call or jax.process_count() == 1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
