"""Bad steps: updates that are not finite are skipped, a loss that jumps rolls the run back; both are counted, and end it when they pile up.

The train step itself leaves parameters and optimizer alone where loss or gradient is not finite. What the guard adds it derives from the
losses alone, and it is saved with the position in the data: a resumed run rolls back at the same step as one that never stopped.
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
    """When a loss counts as a spike: the run then goes back to the newest checkpoint before it and passes over the data up to its end,
    as for PaLM (arXiv:2204.02311, section 5.1).

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    factor: float | None = None
    """A loss above this times the running median is high; None looks for no spikes."""
    steps: int = 5
    """Number of high losses in a row that count as a spike."""
    window: int = 100
    """Number of steps that the median is taken over. Until there are as many, nothing counts as a spike."""
    max_rollbacks: int = 5
    """Number of rollbacks after which one more stops the run."""

    def __post_init__(self) -> None:
        require(self, "factor", self.factor is None or 1 < self.factor < math.inf, "above 1 and finite, or None")
        require(self, "steps", self.steps >= 1, "at least 1")
        require(self, "window", self.window >= 1, "at least 1")
        require(self, "max_rollbacks", self.max_rollbacks >= 0, "0 or more")


@dataclasses.dataclass(frozen=True)
class Spike:
    """A loss that jumped."""

    first: int
    """The first step of high loss."""
    last: int
    """The step that completed the spike."""
    median: float
    """The median before it."""


class Divergence(PlamoError):
    """Training diverged; the message says why and what to change."""

    def __init__(self, reason: str):
        super().__init__(
            f"{reason}; lower schedule.learning_rate or optimizer.clip_norm, or lengthen the warm-up, in a run of another name"
        )


class LossGuard:
    """Judges the loss and the gradient norm of each step once, in order.

    Args:
        max_skipped: more skipped updates in a row than this stop the run.
        spike: what a spike is.
    """

    def __init__(self, max_skipped: int, spike: SpikeConfig):
        self._max_skipped, self._spike = max_skipped, spike
        self._losses: collections.deque[float] = collections.deque(maxlen=spike.window)
        self._skipped_in_a_row = 0
        self._high = 0
        self.step = 0
        """The last step seen."""
        self.rollbacks = 0
        self.passed_over = 0
        """Batches that rollbacks left out: step s is made with batch s + passed_over."""

    def see(self, step: int, loss: float, grad_norm: float) -> Spike | None:
        """Judge one step.

        Args:
            step: its number.
            loss, grad_norm: its figures, finite or not.

        Returns:
            A spike that this step completes.

        Raises:
            Divergence: one skipped update in a row too many.
        """
        self.step = step
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row > self._max_skipped:
                raise Divergence(
                    f"step {step}: loss {loss} with gradient norm {grad_norm}, and {self._skipped_in_a_row} updates in a row skipped for "
                    f"that (max_skipped is {self._max_skipped})"
                )
            return None
        self._skipped_in_a_row = 0
        if self._spike.factor is None:
            return None
        median = statistics.median(self._losses) if len(self._losses) == self._spike.window else math.inf
        if loss <= self._spike.factor * median:
            self._losses.append(loss)
            self._high = 0
            return None
        # High losses stay out of the median until they turn out to be none: a slow rise must not hide itself.
        self._high += 1
        if self._high < self._spike.steps:
            return None
        return Spike(step - self._high + 1, step, median)

    def roll_back(self, spike: Spike, saved: LossGuard) -> int:
        """Take over the guard of a checkpoint before a spike, with the data after the spike.

        Counts do not go back: a second spike after the same checkpoint is met with data further on, and counts as a second.

        Args:
            spike: what `see` returned.
            saved: the guard as it was at the checkpoint.

        Returns:
            How many batches to pass over, from the checkpoint's position in the data.

        Raises:
            Divergence: it is one rollback too many.
        """
        drawn, drawn_then = spike.last + self.passed_over, saved.step + saved.passed_over
        rollbacks = self.rollbacks + 1
        if rollbacks > self._spike.max_rollbacks:
            raise Divergence(
                f"step {spike.last}: the loss left its median, {spike.median:.4g}, and spike.max_rollbacks "
                f"({self._spike.max_rollbacks}) are used up"
            )
        self.set_state(saved.get_state())
        self.rollbacks, self.passed_over = rollbacks, drawn - saved.step
        return drawn - drawn_then

    def go_on(self) -> None:
        """Take the losses of a spike as the new normal, where there is nothing to go back to."""
        self._losses.clear()
        self._high = 0

    def get_state(self) -> dict[str, Any]:
        """Return the state as JSON types, from which floats are restored bit for bit."""
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
