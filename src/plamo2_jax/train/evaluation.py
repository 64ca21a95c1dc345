"""Measuring held-out data between two steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plamo2_jax.train.prepare import PreparedRun
from plamo2_jax.train.state import TrainState
from plamo2_jax.train.task import EvalResult
from plamo2_jax.train.watchdog import StallWatchdog


def evaluate(
    run: PreparedRun, state: TrainState, names: Iterable[str], watchdog: StallWatchdog
) -> tuple[dict[str, EvalResult], dict[str, float]]:
    """Measure the parameters, and their moving average where there is one, on held-out data.

    Args:
        run: the run.
        state: its state.
        names: of the held-out data.
        watchdog: shown that the evaluation moves.

    Returns:
        The results by name, without those of the moving average; and all metrics for the log.
    """
    task, program = run.program.task, run.program

    def measure(params: Any, name: str) -> EvalResult:
        batches = _beating(run.source.heldout(name, *run.part), watchdog)
        return task.evaluate(params, map(program.put, batches), task.frozen)

    results, averaged = {}, {}
    for name in names:
        results[name] = measure(state.params, name)
        if state.ema is not None:
            averaged[name] = measure(state.ema, name)
    return results, _log_metrics(results, "heldout") | _log_metrics(averaged, "heldout_ema")


def _beating(batches: Iterable[Any], watchdog: StallWatchdog) -> Iterator[Any]:
    """The batches; each shows the watchdog that the evaluation moves."""
    for batch in batches:
        watchdog.beat()
        yield batch


def _log_metrics(results: Mapping[str, EvalResult], prefix: str) -> dict[str, float]:
    """`PREFIX/NAME/METRIC` for the log."""
    return {
        f"{prefix}/{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result.metrics.items()
    }
