"""Profiler traces of some steps, for TensorBoard or XProf."""

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
        """Parse FIRST:LAST; both steps are traced.

        Raises:
            PlamoError: The text does not have this form.
        """
        first, colon, last = text.partition(":")
        if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            raise PlamoError(f"profile={text!r} is not allowed: it must be FIRST:LAST, two steps such as 10:13")
        return cls(int(first), int(last))


class Profiler:
    """Context manager that writes traces of some steps to RUN/profile. `steps` are the steps to trace; None: no traces."""

    def __init__(self, folder: str | os.PathLike[str], steps: ProfileSteps | None):
        self._folder, self._steps = located(folder) / PROFILE, steps
        self._tracing = False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Start the trace if this step is the first step to trace."""
        if self._steps and not self._tracing and self._steps.first <= step <= self._steps.last:
            self._mirror = Mirror(self._folder)
            jax.profiler.start_trace(self._mirror.folder)
            self._tracing = True

    def after(self, step: int, result: object) -> None:
        """After the last step to trace, wait for its result and end the trace."""
        if self._tracing and step >= self._steps.last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._mirror.close()
