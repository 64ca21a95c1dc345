"""The train loop: prepare, restore, then step, log, evaluate and save checkpoints until the last step.

The first state is the first of these that exists:

1. the newest checkpoint of this run, in its folder or on the disks of the hosts; its configuration must be the same, or the error names
   the differences;
2. the checkpoint of another run that `fork` names, including the optimizer state;
3. the parameters of `init_from`, with a new optimizer state;
4. random parameters.

A run that was interrupted and resumed makes bit-identical updates to a run that was never interrupted. A checkpoint contains everything
that an update depends on: parameters, optimizer state, step, random key, data position and the state of the loss guard.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from plamo2_jax.log_format import emit, is_json
from plamo2_jax.progress import tqdm
from plamo2_jax.train import processes, run_folder
from plamo2_jax.train.checkpoints import RunCheckpoints
from plamo2_jax.train.config import RunConfig, to_json
from plamo2_jax.train.evaluation import HELDOUT, TASKS, answer_tasks, evaluate
from plamo2_jax.train.goodput import Goodput
from plamo2_jax.train.loss_guard import LossGuard
from plamo2_jax.train.metrics import MetricsLog, NoLog
from plamo2_jax.train.preemption import Preemption
from plamo2_jax.train.prepare import OpenBenchmarks, prepare
from plamo2_jax.train.profiler import Profiler, ProfileSteps
from plamo2_jax.train.restore import restore, roll_back
from plamo2_jax.train.step_metrics import StepMetrics
from plamo2_jax.train.task import EvalResult
from plamo2_jax.train.watchdog import StallWatchdog
from plamo2_jax.train.writers import WriterName, require_writers


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Result of `train`."""

    step: int
    """Number of updates, including those before a resume."""
    signal: int | None
    """The signal that stopped the run early, or before its last evaluation; None if the run is complete."""
    heldout: Mapping[str, EvalResult]
    """The last measurement on held-out data, by name; `HeldOut` for tasks that measure bits per byte."""


def train(
    config: RunConfig,
    *,
    profile: ProfileSteps | None = None,
    on_step: Callable[[int], None] | None = None,
    open_benchmarks: OpenBenchmarks | None = None,
    writers: Sequence[WriterName] = ("tensorboard",),
) -> TrainResult:
    """Train the run that `config` describes, or resume it.

    Everything is written to `config.folder`: config.json, tokenizer.jsonl, checkpoints/, metrics.jsonl, tensorboard/.
    SIGINT and SIGTERM end the run after the current step, with a checkpoint. In a job of several processes (`processes.join`), a signal to
    any process ends all of them at the next write to the log.

    Args:
        config: Configuration of the run, the same in all processes.
        profile: Steps to trace into profile/.
        on_step: Called after each update is dispatched, before it is logged, with the number of updates.
        open_benchmarks: Opens the tasks of `evaluation.tasks` (`plamo2_jax.eval.in_training.open_benchmarks`).
        writers: Programs that get the metrics of metrics.jsonl too.

    Raises:
        TrainingError: The folder has a run with another configuration or tokenizer, or another process is training this run.
        Divergence: Too many updates were skipped in a row, or there were too many rollbacks.
        CheckpointError: A checkpoint could not be written, or no checkpoint can be read.
        PlamoError, OSError: A file of the configuration is missing or invalid, a file cannot be written, or a writer is unknown or its
            package is not installed.
    """
    require_writers(writers)
    with run_folder.lock(config.folder) as take_lock:
        # -- Prepare ---------------------------------------------------------------------------------------------------------------
        run = prepare(config, take_lock, open_benchmarks)
        program, task, folder = run.program, run.program.task, config.folder
        on_evaluate = run.on_evaluate
        writes = jax.process_index() == 0
        guard = LossGuard(config.max_skipped, config.spike)
        about = {"config": to_json(config), "mesh": dict(program.mesh.shape), "processes": jax.process_count()}
        with (
            run.batches,
            RunCheckpoints(folder, program.state, config.max_to_keep, about, run.local) as checkpoints,
            processes.leave_when_broken(folder),
        ):
            # -- Restore -----------------------------------------------------------------------------------------------------------
            begun = time.perf_counter()
            state = jax.block_until_ready(restore(run, checkpoints, guard))
            restore_seconds = time.perf_counter() - begun + (0.0 if run.local is None else run.local.check_seconds)
            step = int(state.step)
            # -- Loop --------------------------------------------------------------------------------------------------------------
            heldout: dict[str, EvalResult] = {}
            unmeasured = False
            with (
                MetricsLog(folder, step, writers, {"name": config.name, **about}) if writes else NoLog() as log,
                Preemption() as preemption,
                StallWatchdog(folder, config.stall_seconds) as watchdog,
                Profiler(folder, profile) as profiler,
                tqdm(
                    total=config.steps,
                    initial=step,
                    unit="step",
                    desc=config.name,
                    dynamic_ncols=True,
                    disable=not writes or is_json(),
                ) as progress,
            ):
                goodput = Goodput(folder) if writes else None
                if goodput is not None and checkpoints.tier is not None:
                    goodput.add_restore(checkpoints.tier, restore_seconds, log.dropped_steps, log.dropped_seconds)
                step_metrics = StepMetrics(config, program, log, guard, watchdog, goodput)

                def answer() -> None:
                    params = task.to_model_params(state.params, task.frozen)
                    if answered := answer_tasks(run.benchmarks, params, watchdog, preemption):
                        log.write(step, answered)

                def measure() -> None:
                    nonlocal heldout
                    if config.heldout:
                        heldout, measured = evaluate(run, state, config.heldout, watchdog)
                        log.write(step, measured)
                        if writes:
                            emit("evaluation", step=step, metrics=measured)
                    if on_evaluate is not None:
                        watchdog.beat()
                        on_evaluate(step, task.to_model_params(state.params, task.frozen))

                def is_missing(prefix: str) -> bool:
                    return processes.from_first(not any(name.startswith(prefix) for name in log.first_names))

                # After a signal, a step has a checkpoint, but no evaluation.
                if run.is_resumed and step and config.heldout and config.evaluation_due(step) and is_missing(HELDOUT):
                    measure()
                if step and config.tasks_due(step) and is_missing(TASKS):
                    answer()
                log.flush()
                step_metrics.restart()
                while step < config.steps:
                    step += 1
                    profiler.before(step)
                    with step_metrics.clock.data_wait():
                        batch = next(run.batches)
                    state, metrics = run.train_step(state, batch, task.frozen)
                    step_metrics.add(step, metrics)
                    profiler.after(step, metrics)
                    if on_step is not None:
                        on_step(step)

                    complete, due = step == config.steps, step % config.checkpoint_every == 0
                    local_due = config.local_due(step)
                    evaluation_due = (bool(config.heldout) or on_evaluate is not None) and config.evaluation_due(step)
                    tasks_due = config.tasks_due(step)
                    often = step % config.log_every == 0 or step % config.evaluate_every == 0
                    writing = complete or due or local_due or often or tasks_due
                    stopping = preemption.should_stop(writing)
                    saving = complete or stopping or due
                    # After a signal, there may be no time for a pass over the held-out data.
                    evaluating = evaluation_due and not stopping
                    if writing or stopping:
                        spike = step_metrics.write()
                        progress.set_postfix(step_metrics.shown)
                        if writes:
                            emit("step", step=step, steps=config.steps, metrics=step_metrics.newest)
                        restored = spike and roll_back(config, run, checkpoints, guard, log, spike)
                        if restored is not None:
                            state, step = restored, int(restored.step)
                            progress.n = step
                            step_metrics.restart()
                            continue
                    if evaluating:
                        measure()
                    answering = tasks_due and not stopping
                    if answering:
                        answer()
                    log.flush()
                    if saving:
                        log.upload()  # Before the checkpoint, so that a run that resumes from it finds all lines of its steps.
                        checkpoints.save(state, run.batches, guard)
                        if writes:
                            emit("checkpoint", step=step)
                    elif local_due:
                        log.upload()
                        checkpoints.save_local(state, run.batches, guard)
                    if writing and not saving:
                        checkpoints.check()
                    progress.update()
                    if evaluating or answering or saving or local_due:
                        step_metrics.restart()
                    if stopping:
                        unmeasured = evaluation_due or tasks_due
                        break
                if step == config.steps:
                    checkpoints.remove_local()
                signal = preemption.signal if step < config.steps or unmeasured else None
        return TrainResult(step, signal, heldout)
