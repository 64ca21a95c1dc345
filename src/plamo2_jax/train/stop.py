"""Stopping between two steps when the process is asked to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Notes SIGINT and SIGTERM instead of dying of them; a context manager.

    The loop looks at `signal` after each step. A second signal of the same kind is handled as it was before, so that Ctrl-C twice
    still ends a process that hangs. Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
