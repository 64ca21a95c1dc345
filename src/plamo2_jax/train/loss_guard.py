"""Detection of skipped updates and of loss spikes. A run with too many of them ends.

The train step skips an update if its loss or gradient is not finite. The guard decides from the losses and gradient norms alone when to
roll back, and its state is saved with the data position. So a resumed run rolls back at the same step as a run that was never interrupted.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """Detection of loss spikes. After a spike, the run rolls back to the newest checkpoint before it and skips the data of the spike, as in
    PaLM (arXiv:2204.02311, section 5.1).

    Raises:
        PlamoError: A field is out of range.
    """

    factor: float | None = None
    """A loss counts as high if it is above this factor times the running median. For a negative median, the distance from the median
    counts: (factor - 1) times its absolute value. None: no detection."""
    steps: int = 5
    """Number of consecutive high losses that count as a spike."""
    window: int = 100
    """Number of steps in the running median. No spike is detected before this number of steps."""
    max_rollbacks: int = 5
    """Maximum number of rollbacks; one more stops the run."""

    def __post_init__(self) -> None:
        require(self, "factor", self.factor is None or 1 < self.factor < math.inf, "above 1 and finite, or None")
        require(self, "steps", self.steps >= 1, "at least 1")
        require(self, "window", self.window >= 1, "at least 1")
        require(self, "max_rollbacks", self.max_rollbacks >= 0, "0 or more")


@dataclasses.dataclass(frozen=True)
class Spike:
    """A spike of the loss."""

    first: int
    """First step of high loss."""
    last: int
    """Step that completed the spike."""
    median: float
    """Median loss before the spike."""


class Divergence(PlamoError):
    """Training diverged."""

    def __init__(self, reason: str):
        super().__init__(
            f"{reason}. Lower schedule.learning_rate or optimizer.clip_norm, or lengthen the warm-up, in a run "
            "with a new name"
        )


class LossGuard:
    """Checks the loss and the gradient norm of every step, in order.

    Args:
        max_skipped: The run stops if more updates than this are skipped in a row.
        spike: Definition of a spike.
    """

    def __init__(self, max_skipped: int, spike: SpikeConfig):
        self._max_skipped, self._spike = max_skipped, spike
        self._losses: collections.deque[float] = collections.deque(maxlen=spike.window)
        self._skipped_in_a_row = 0
        self._high = 0
        self.step = 0
        """The last checked step."""
        self.rollbacks = 0
        self.passed_over = 0
        """Number of batches that rollbacks skipped: step s uses batch s + passed_over."""

    def see(self, step: int, loss: float, grad_norm: float) -> Spike | None:
        """Check one step. Return the spike that it completes, if any.

        Raises:
            Divergence: Too many updates were skipped in a row.
        """
        self.step = step
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row > self._max_skipped:
                raise Divergence(
                    f"step {step}: training diverged: the loss is {loss} and the gradient norm is {grad_norm}; "
                    f"{self._skipped_in_a_row} updates in a row were skipped (max_skipped is "
                    f"{self._max_skipped})"
                )
            return None
        self._skipped_in_a_row = 0
        if self._spike.factor is None:
            return None
        median = statistics.median(self._losses) if len(self._losses) == self._spike.window else math.inf
        # For losses that may be negative, such as the robust loss of preferences.
        if loss - median <= (self._spike.factor - 1) * abs(median):
            self._losses.append(loss)
            self._high = 0
            return None
        # High losses are not added to the median. Otherwise a slow rise would raise the median and stay undetected.
        self._high += 1
        if self._high < self._spike.steps:
            return None
        return Spike(step - self._high + 1, step, median)

    def roll_back(self, spike: Spike, saved: LossGuard) -> int:
        """Take the state of a checkpoint before a spike, and move the data position to the end of the spike.

        The number of rollbacks is kept, so a second spike after the same checkpoint gets other data and counts again.

        Args:
            spike: Result of `see`.
            saved: Guard with the state of the checkpoint.

        Returns:
            Number of batches to skip from the data position of the checkpoint.

        Raises:
            Divergence: There were too many rollbacks.
        """
        drawn, drawn_then = spike.last + self.passed_over, saved.step + saved.passed_over
        rollbacks = self.rollbacks + 1
        if rollbacks > self._spike.max_rollbacks:
            raise Divergence(
                f"step {spike.last}: training diverged: the loss is far above its median {spike.median:.4g}, "
                f"and the run has already rolled back spike.max_rollbacks={self._spike.max_rollbacks} times"
            )
        self.set_state(saved.get_state())
        self.rollbacks, self.passed_over = rollbacks, drawn - saved.step
        return drawn - drawn_then

    def go_on(self) -> None:
        """Accept the losses of a spike as normal, when there is no checkpoint to return to."""
        self._losses.clear()
        self._high = 0

    def get_state(self) -> dict[str, Any]:
        """Return the state as JSON values. Floats are restored bit for bit."""
        return {
            "losses": list(self._losses),
            "skipped_in_a_row": self._skipped_in_a_row,
            "high": self._high,
            "rollbacks": self.rollbacks,
            "passed_over": self.passed_over,
            "step": self.step,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self._losses.clear()
        self._losses.extend(state["losses"])
        self._skipped_in_a_row, self._high = state["skipped_in_a_row"], state["high"]
        self.rollbacks, self.passed_over, self.step = state["rollbacks"], state["passed_over"], state["step"]
