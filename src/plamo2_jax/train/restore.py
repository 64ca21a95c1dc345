"""The state that a run starts from, and the state that it goes back to after a spike of the loss."""

from __future__ import annotations

import sys

from plamo2_jax.train.checkpoints import RunCheckpoints
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.loss_guard import LossGuard, Spike
from plamo2_jax.train.metrics import MetricsLog, NoLog
from plamo2_jax.train.prepare import PreparedRun
from plamo2_jax.train.state import TrainState


def restore(run: PreparedRun, checkpoints: RunCheckpoints, guard: LossGuard) -> TrainState:
    """Return the first state, in this order: the run's own checkpoint, the fork, the task's first parameters.

    Raises:
        CheckpointError: no checkpoint is left that can be read.
    """
    if run.is_resumed:
        return checkpoints.restore(run.program.state, run.iterator, guard)
    if run.fork is not None:
        return run.fork.restore(run.program.state, run.iterator, guard)
    return run.program.create_state()


def roll_back(
    config: RunConfig,
    run: PreparedRun,
    checkpoints: RunCheckpoints,
    guard: LossGuard,
    log: MetricsLog | NoLog,
    spike: Spike,
) -> TrainState | None:
    """Return the state before a spike and move the data past the end of the spike; None where there is no checkpoint to go back to.

    Raises:
        Divergence: it is one rollback too many.
        CheckpointError: the checkpoint cannot be read.
    """
    before = checkpoints.step_before(spike.first, config.checkpoint_every)
    if before is None:
        guard.go_on()
        return None
    saved = LossGuard(config.max_skipped, config.spike)
    state = checkpoints.restore_step(before, run.program.state, run.iterator, saved)
    for _ in range(guard.roll_back(spike, saved)):
        next(run.iterator)
    log.drop_after(before)
    # Under the step that comes next: a run that resumes from this checkpoint meets the spike and writes this line again.
    log.write(before + 1, {"rollbacks": guard.rollbacks, "passed_over": guard.passed_over})
    print(
        f"the loss rose far above its median {spike.median:.4g} in steps {spike.first} to {spike.last}: back to the checkpoint of step "
        f"{before}, past the data up to step {spike.last}",
        file=sys.stderr,
    )
    return state
