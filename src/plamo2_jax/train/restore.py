"""The first state of a run, and the state to which it returns after a spike of the loss."""

from __future__ import annotations

import sys

from plamo2_jax.train.checkpoints import RunCheckpoints
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.loss_guard import LossGuard, Spike
from plamo2_jax.train.metrics import MetricsLog, NoLog
from plamo2_jax.train.prepare import PreparedRun
from plamo2_jax.train.state import TrainState


def restore(run: PreparedRun, checkpoints: RunCheckpoints, guard: LossGuard) -> TrainState:
    """Return the first state: from the run's own checkpoint, the fork, or the initial parameters of the task.

    Raises:
        CheckpointError: No checkpoint can be read.
    """
    if run.is_resumed:
        return checkpoints.restore(run.batches, guard)
    if run.fork is not None:
        return run.fork.restore(run.program.state, run.batches, guard)
    return run.program.create_state()


def roll_back(
    config: RunConfig,
    run: PreparedRun,
    checkpoints: RunCheckpoints,
    guard: LossGuard,
    log: MetricsLog | NoLog,
    spike: Spike,
) -> TrainState | None:
    """Return the state before a spike, and move the data position to the end of the spike; None if there is no checkpoint before it.

    Raises:
        Divergence: There were too many rollbacks.
        CheckpointError: The checkpoint cannot be read.
    """
    before = checkpoints.step_before(spike.first, config.checkpoint_every)
    if before is None:
        guard.go_on()
        return None
    saved = LossGuard(config.max_skipped, config.spike)
    state = checkpoints.restore_step(before, run.batches, saved)
    for _ in range(guard.roll_back(spike, saved)):
        next(run.batches)
    log.drop_after(before)
    # Logged for the next step, because a run that resumes from this checkpoint has the spike again and writes this line again.
    log.write(before + 1, {"rollbacks": guard.rollbacks, "passed_over": guard.passed_over})
    print(
        f"loss spike: the loss was far above its median {spike.median:.4g} in steps {spike.first} to {spike.last}. The run rolls back to "
        f"the checkpoint of step {before} and skips the data up to step {spike.last}",
        file=sys.stderr,
    )
    return state
