"""The train loop: prepare, restore, then step, log, evaluate and checkpoint until done.

Where the first state comes from, in this order:

1. the newest checkpoint of this very run, when its folder has one (its configuration must be the same: an error names what
differs); 2. the checkpoint of another run that `fork` names, optimizer included; 3. the parameters of `init_from`, with a fresh
optimizer; 4. random parameters.

A run that was stopped and resumed makes the same updates, bit for bit, as one that was never stopped: a checkpoint holds
parameters, optimizer, step, random key, the position in the data and the state of the loss guard, and nothing else decides an update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax

from plamo2_jax.progress import tqdm
from plamo2_jax.train import processes, run_folder
from plamo2_jax.train.checkpoints import RunCheckpoints
from plamo2_jax.train.config import RunConfig, to_json
from plamo2_jax.train.evaluation import evaluate
from plamo2_jax.train.goodput import Goodput
from plamo2_jax.train.loss_guard import LossGuard
from plamo2_jax.train.metrics import MetricsLog, NoLog
from plamo2_jax.train.preemption import Preemption
from plamo2_jax.train.prepare import prepare
from plamo2_jax.train.profiler import Profiler, ProfileSteps
from plamo2_jax.train.restore import restore, roll_back
from plamo2_jax.train.step_metrics import StepMetrics
from plamo2_jax.train.task import EvalResult
from plamo2_jax.train.watchdog import StallWatchdog


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    step: int
    """Updates made, those before a resume included."""
    signal: int | None
    """The signal that stopped it early; None for a run that is complete."""
    heldout: Mapping[str, EvalResult]
    """The last measurement on held-out data, by name; `HeldOut` where the task measures bits per byte."""


def train(
    config: RunConfig,
    *,
    profile: ProfileSteps | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train the run that `config` describes, or resume it.

    Everything is written to `config.folder`: config.json, tokenizer.jsonl, checkpoints/, metrics.jsonl, tensorboard/.
    SIGINT and SIGTERM end the run after the current step, with a checkpoint. A job of several processes (`processes.join`) agrees
    to stop at the next write of the log, whichever of them was signalled.

    Args:
        config: the run; the same in all processes.
        profile: steps to trace into profile/.
        on_step: called with the number of updates handed to the device after each one, before it is logged.

    Returns:
        How it ended.

    Raises:
        TrainingError: the run in the folder has another configuration or tokenizer, or another process is training it.
        Divergence: too many updates were skipped in a row, or too many spikes rolled back.
        CheckpointError: a checkpoint could not be written, or none is left that can be read.
        ValueError, OSError: a file that the configuration names is missing or unfit, or cannot be written.
    """
    with run_folder.lock(config.folder) as take_lock:
        # -- Prepare ---------------------------------------------------------------------------------------------------------------
        run = prepare(config, take_lock)
        program, task, folder = run.program, run.program.task, config.folder
        on_evaluate = run.on_evaluate
        writes = jax.process_index() == 0
        guard = LossGuard(config.max_skipped, config.spike)
        about = {"config": to_json(config), "mesh": dict(program.mesh.shape), "processes": jax.process_count()}
        with RunCheckpoints(folder, config.max_to_keep, about) as checkpoints, processes.leave_when_broken(folder):
            # -- Restore -----------------------------------------------------------------------------------------------------------
            state = restore(run, checkpoints, guard)
            step = int(state.step)
            # -- Loop --------------------------------------------------------------------------------------------------------------
            heldout: dict[str, EvalResult] = {}
            with (
                MetricsLog(folder, step) if writes else NoLog() as log,
                Preemption() as preemption,
                StallWatchdog(folder, config.stall_seconds) as watchdog,
                Profiler(folder, profile) as profiler,
                tqdm(
                    total=config.steps,
                    initial=step,
                    unit="step",
                    desc=config.name,
                    dynamic_ncols=True,
                    disable=not writes,
                ) as progress,
            ):
                goodput = Goodput(folder) if writes else None
                step_metrics = StepMetrics(config, program, log, guard, watchdog, goodput)
                while step < config.steps:
                    step += 1
                    profiler.before(step)
                    with step_metrics.clock.data_wait():
                        batch = next(run.iterator)
                        batch = program.put(batch if task.transform_batch is None else task.transform_batch(batch))
                    state, metrics = run.train_step(state, batch, task.frozen)
                    step_metrics.add(step, metrics)
                    profiler.after(step, metrics)
                    if on_step is not None:
                        on_step(step)

                    complete, due = step == config.steps, step % config.checkpoint_every == 0
                    evaluation_due = complete or step % config.evaluate_every == 0
                    writing = complete or due or step % config.log_every == 0 or step % config.evaluate_every == 0
                    stopping = preemption.agreed(writing)
                    saving = complete or stopping or due
                    # A process that was asked to end must not wait for a pass over the held-out data.
                    measures = bool(config.heldout) or on_evaluate is not None
                    evaluating = measures and evaluation_due and not stopping
                    if writing or stopping:
                        spike = step_metrics.write()
                        progress.set_postfix(step_metrics.shown)
                        restored = spike and roll_back(config, run, checkpoints, guard, log, spike)
                        if restored is not None:
                            state, step = restored, int(restored.step)
                            progress.n = step
                            step_metrics.restart()
                            continue
                    if evaluating and config.heldout:
                        heldout, measured = evaluate(run, state, config.heldout, watchdog)
                        log.write(step, measured)
                    if evaluating and on_evaluate is not None:
                        watchdog.beat()
                        on_evaluate(step, task.to_model_params(state.params, task.frozen))
                    log.flush()
                    if saving:
                        log.upload()  # Before the checkpoint: a run that resumes from it finds all lines up to it.
                        checkpoints.save(state, run.iterator, guard)
                    elif writing:
                        checkpoints.check()
                    progress.update()
                    if evaluating or saving:
                        step_metrics.restart()
                    if stopping:
                        break
                signal = preemption.signal if step < config.steps else None
        return TrainResult(step, signal, heldout)
