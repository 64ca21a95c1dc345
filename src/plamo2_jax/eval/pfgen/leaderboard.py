"""The numbers of the pfgen-bench leaderboard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class LeaderboardRow:
    """A row of the leaderboard, with its digits."""

    score: float
    """Mean over trials of the mean over questions of the average, 4 digits."""
    std: float
    """Population standard deviation over trials, 4 digits."""
    trials: int
    """Smallest number of answers to a question."""
    length: float
    """Mean number of characters of all answers, 1 digit."""
    length_std: float
    """Population standard deviation of the number of characters, 1 digit."""

    def __str__(self) -> str:
        return f"{self.score:.4f} (±{self.std:.4f}/√{self.trials}), length {self.length:.1f} (±{self.length_std:.1f})"


def leaderboard_row(averages: Sequence[Sequence[float]], lengths: Sequence[int]) -> LeaderboardRow:
    """Return the row for answers to several questions.

    Args:
        averages: for each question, the averages of its answers. Trial i has the i-th answer to each question. The benchmark takes the
            answers in the order of its results file, whose lines are sorted bytewise. The order changes `std` only.
        lengths: number of characters of each answer.
    """
    trials = [_mean(trial) for trial in zip(*averages, strict=False)]
    return LeaderboardRow(
        round(_mean(trials), 4), round(_std(trials), 4), len(trials), round(_mean(lengths), 1), round(_std(lengths), 1)
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
