"""Benchmark tasks that the current parameters answer during training: their configuration, and the interface to the package that runs them.

Tasks are in `plamo2_jax.eval`, which is built on this package. So the train loop gets a function that opens them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class BenchmarksConfig:
    """Benchmark tasks that are evaluated during training.

    Raises:
        PlamoError: A field is out of range.
    """

    tasks: tuple[str, ...] = ()
    """Names of tasks (plamo2 evaluate --list). Empty: none."""
    every: int | None = None
    """Number of steps between evaluations on the tasks. The last step always has an evaluation. None: evaluate_every."""
    limit: int | None = None
    """Maximum number of items of each task, spread evenly over its items. None: all."""
    paths: dict[str, Path] = dataclasses.field(default_factory=dict)
    """Data paths by task, for tasks whose data is not part of this package."""
    shots: int | None = None
    """Number of few-shot examples in a prompt. None: the default of each task."""
    lengths: tuple[int, ...] = ()
    """Lengths of generated contexts, in tokens. Empty: the default of each task."""
    max_new_tokens: int | None = None
    """Maximum number of tokens of an answer. None: the default of each task."""
    template: str = "chat"
    """Chat template for conversations: chat, translate, a Jinja file or a folder with one."""
    batch_size: int = 64
    """Number of texts generated or scored together."""

    def __post_init__(self) -> None:
        require(self, "tasks", len(set(self.tasks)) == len(self.tasks), "different names")
        unused = sorted(set(self.paths) - set(self.tasks))
        require(self, "paths", not unused, "keys among evaluation.tasks")
        for name in ("every", "limit", "max_new_tokens"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or none")
        require(self, "shots", self.shots is None or self.shots >= 0, "0 or more, or none")
        require(self, "lengths", all(length >= 1 for length in self.lengths), "at least 1 each")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")


class Benchmarks(Protocol):
    """Open tasks."""

    def measure(self, params: Any, keep_on: Callable[[], bool]) -> dict[str, float]:
        """Answer the tasks with parameters of the model, in the layout and on the devices of the run.

        Args:
            params: Parameters of the model, which are not changed.
            keep_on: Called between batches. It returns whether to continue.

        Returns:
            The metrics as TASK/METRIC; empty if `keep_on` returned False.
        """
