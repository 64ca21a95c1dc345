"""Evaluation on held-out data and on benchmark tasks between two steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plamo2_jax.train.benchmarks import Benchmarks
from plamo2_jax.train.preemption import Preemption
from plamo2_jax.train.prepare import PreparedRun
from plamo2_jax.train.state import TrainState
from plamo2_jax.train.task import EvalResult
from plamo2_jax.train.watchdog import StallWatchdog

HELDOUT = "heldout/"
"""Beginning of the names of the metrics of held-out data in the log."""
TASKS = "tasks/"
"""Beginning of the names of the metrics of benchmark tasks in the log."""


def evaluate(
    run: PreparedRun, state: TrainState, names: Iterable[str], watchdog: StallWatchdog
) -> tuple[dict[str, EvalResult], dict[str, float]]:
    """Measure the parameters, and their moving average if there is one, on held-out data.

    Returns:
        The results of the parameters by name of the held-out data; and all metrics for the log, as PREFIX/NAME/METRIC.
    """
    task, program = run.program.task, run.program

    def batches(name: str) -> Iterator[Any]:
        for batch in run.source.heldout(name, *run.part):
            watchdog.beat()
            yield program.put(batch)

    results, log = {}, {}
    for name in names:
        for prefix, params in (("heldout", state.params), ("heldout_ema", state.ema)):
            if params is not None:
                result = task.evaluate(params, batches(name), task.frozen)
                log |= {f"{prefix}/{name}/{metric}": value for metric, value in result.metrics.items()}
                if prefix == "heldout":
                    results[name] = result
    return results, log


def newest_heldout(lines: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the last measurement on held-out data in the lines of metrics.jsonl: metrics by name of the data."""
    newest: dict[str, dict[str, float]] = {}
    for line in lines:
        found = {name.removeprefix(HELDOUT): value for name, value in line.items() if name.startswith(HELDOUT)}
        if found:
            newest = {}
            for name, value in found.items():
                data, _, metric = name.rpartition("/")
                newest.setdefault(data, {})[metric] = value
    return newest


def answer_tasks(
    benchmarks: Benchmarks, params: Any, watchdog: StallWatchdog, preemption: Preemption
) -> dict[str, float]:
    """Answer the benchmark tasks with model parameters.

    Returns:
        The metrics for the log, as tasks/TASK/METRIC; empty if a signal asked the run to end.
    """

    def keep_on() -> bool:
        watchdog.beat()
        return preemption.signal is None

    return {f"{TASKS}{name}": value for name, value in benchmarks.measure(params, keep_on).items()}
