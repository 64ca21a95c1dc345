"""Traces of some steps for TensorBoard or XProf."""

from __future__ import annotations

import dataclasses
import os

import jax

from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import Mirror, located

PROFILE = "profile"


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """Steps to trace."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> ProfileSteps:
        """Parse FIRST:LAST, both traced.

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
    """Context manager that traces some steps into run/profile, for TensorBoard or XProf. Leaving it ends a trace under way.

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
        """Begin the trace if this step is the first one to trace."""
        if self._steps and not self._tracing and self._steps.first <= step <= self._steps.last:
            self._mirror = Mirror(self._folder)
            jax.profiler.start_trace(self._mirror.folder)
            self._tracing = True

    def after(self, step: int, result: object) -> None:
        """Wait for the result and end the trace if this step was the last one to trace."""
        if self._tracing and step >= self._steps.last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._mirror.close()
