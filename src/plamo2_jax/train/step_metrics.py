"""Metrics of the steps between two writes to the log: sums that are still on the device, and times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax

from plamo2_jax.train.build import TrainProgram
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.flops import model_flops_utilization
from plamo2_jax.train.goodput import Goodput
from plamo2_jax.train.loss_guard import LossGuard, Spike
from plamo2_jax.train.metrics import MetricsLog, NoLog, step_figures
from plamo2_jax.train.step_clock import StepClock
from plamo2_jax.train.task import PROCESSED, Metrics
from plamo2_jax.train.watchdog import StallWatchdog


class StepMetrics:
    """Collect the metrics of steps and write them to the log.

    The host waits for a step when the next one is dispatched. So the device always has work, and the end of each step is measured.

    Args:
        goodput: None if another process writes the log.
    """

    def __init__(
        self,
        config: RunConfig,
        program: TrainProgram,
        log: MetricsLog | NoLog,
        guard: LossGuard,
        watchdog: StallWatchdog,
        goodput: Goodput | None,
    ):
        self._config, self._devices, self._task = config, list(program.mesh.devices.flat), program.task
        self._log, self._guard = log, guard
        self._watchdog, self._goodput = watchdog, goodput
        self.clock = StepClock()
        self.shown: dict[str, str] = {}
        """Metrics for the progress bar."""
        self.newest: dict[str, float] = {}
        """All metrics of the newest step in the log."""
        self.restart()

    def restart(self) -> None:
        """Drop metrics that were not written and restart the clock, after time that was not spent on steps."""
        self._steps: list[tuple[int, Metrics]] = []
        self._seconds: list[float] = []
        self.clock.restart()

    def add(self, step: int, metrics: Metrics) -> None:
        """Add the sums of a step that was just dispatched, and wait for the step before it."""
        self._steps.append((step, metrics))
        if len(self._steps) > 1:
            self._await(self._steps[-2][1])

    def write(self) -> Spike | None:
        """Wait for the device and write a line for each step.

        Returns:
            A spike of the loss, if any. The steps after its last step are neither checked nor written.

        Raises:
            Divergence: Too many updates were skipped in a row.
        """
        if not self._steps:
            return None
        self._await(self._steps[-1][1])
        lines = [
            (step, {name: float(value) for name, value in sums.items()}) for step, sums in jax.device_get(self._steps)
        ]
        rates = self._rates([sums for _, sums in lines])
        shown: dict[str, str] = {}
        spike = None
        for (step, sums), seconds in zip(lines, self._seconds, strict=True):
            figures = step_figures(sums, self._task.denominators)
            if figures["skipped"]:
                # Readers of the log take a line with a loss as an update.
                figures = {name: value for name, value in figures.items() if math.isfinite(value) and name != "loss"}
            figures |= rates | {"step_seconds": seconds}
            if step == lines[-1][0]:
                figures |= self._watched(seconds)
            self._log.write(step, figures)
            self.newest = figures
            shown = {"loss": f"{sums['loss']:.3f}"}
            if "bits_per_byte" in figures:
                shown["bits/byte"] = f"{figures['bits_per_byte']:.3f}"
            spike = self._guard.see(step, sums["loss"], sums["grad_norm"])
            if spike is not None:
                break
        self.shown = {**shown, "tokens/s": f"{rates['tokens_per_second']:,.0f}"}
        self.restart()
        return spike

    def _await(self, metrics: Metrics) -> None:
        jax.block_until_ready(metrics["loss"])
        self._seconds.append(self.clock.step())
        self._watchdog.beat()

    def _rates(self, steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return the speed since the last write. `tokens_per_second`, the base of MFU, counts every token that the model reads once;
        `trained_tokens_per_second` counts the targets of the loss.
        """
        config, devices, seconds = self._config, self._devices, sum(self._seconds)
        processed = sum(sums[PROCESSED] for sums in steps) / seconds
        trained = sum(sums["tokens"] for sums in steps if math.isfinite(sums["tokens"])) / seconds
        hardware = (devices[0].device_kind, len(devices))
        length, forward_only = config.data.sequence_length, self._task.forward_only
        mfu = model_flops_utilization(config.model, length, processed, *hardware, forward_only)
        rates = {"tokens_per_second": processed, "trained_tokens_per_second": trained}
        return rates | ({} if mfu is None else {"mfu": mfu})

    def _watched(self, seconds: float) -> dict[str, float]:
        """Return the metrics that are measured once per write. `seconds` is the time of the step that is not in the log yet."""
        goodput = {}
        if self._goodput is not None:
            goodput = {"goodput": self._goodput.share(self._log.seconds + seconds), **self._goodput.losses()}
        return self.clock.figures() | memory_in_use(self._devices) | goodput


def memory_in_use(devices: Sequence[jax.Device]) -> dict[str, float]:
    """Return `hbm_bytes` (in use) and `hbm_peak_bytes`, the maxima over the devices of this process; empty on CPU, which reports none."""
    stats = [
        stats for device in devices if device.process_index == jax.process_index() and (stats := device.memory_stats())
    ]
    names = {"hbm_bytes": "bytes_in_use", "hbm_peak_bytes": "peak_bytes_in_use"}
    return {ours: float(max(stat.get(theirs, 0) for stat in stats)) for ours, theirs in names.items() if stats}
