"""The pretraining loop: build, restore, then step, log, evaluate and checkpoint until done.

Where the first state comes from, in this order:

1. the newest checkpoint of this very run, when its folder has one (its configuration must be the same: an error names what
differs); 2. the checkpoint of another run that `fork` names, optimizer included; 3. the parameters of `init_from`, with a fresh
optimizer; 4. scratch.

A run that was stopped and goes on makes the same updates, bit for bit, as one that was never stopped: a checkpoint holds
parameters, optimizer, step, random key, the position in the data and what the guard against bad steps has seen, and nothing else
decides an update.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.model.bits_per_byte import make_evaluator
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.progress import tqdm
from plamo2_jax.sharding.mesh import make_mesh
from plamo2_jax.sharding.rules import batch_sharding, param_shardings, process_part, replicated, with_shardings
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train import processes, run_folder
from plamo2_jax.train.banner import Compiling, announce
from plamo2_jax.train.checkpoints import RunCheckpoints
from plamo2_jax.train.config import PretrainConfig, to_json
from plamo2_jax.train.distillation import Beside
from plamo2_jax.train.fork import FORKED_FROM, open_fork
from plamo2_jax.train.guard import Guard, Spike
from plamo2_jax.train.metrics import MetricsLog, NoLog
from plamo2_jax.train.objective import Objective, next_token
from plamo2_jax.train.optimizer import make_optimizer
from plamo2_jax.train.run_folder import TrainingError
from plamo2_jax.train.schedule import make_schedule
from plamo2_jax.train.source import ShardSource, Source
from plamo2_jax.train.state import TrainState, state_shardings
from plamo2_jax.train.step import make_step
from plamo2_jax.train.stop import StopRequest
from plamo2_jax.train.trained import Trained, WholeModel
from plamo2_jax.train.watch import Goodput, Profiler, ProfileSteps, StallWatchdog
from plamo2_jax.train.window import Window

_BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "loss_weights": jnp.float32,
}


class Measured(Protocol):
    """What was measured on held-out data."""

    def figures(self) -> dict[str, float]:
        """All figures by name."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `pretrain` ended."""

    step: int
    """Updates made, those before a resume included."""
    signal: int | None
    """The signal that stopped it early; None for a run that is complete."""
    heldout: Mapping[str, Measured]
    """The last measurement on held-out data, by name; `HeldOut` where the objective does not measure otherwise."""


def pretrain(
    config: PretrainConfig,
    *,
    profile: ProfileSteps | None = None,
    on_step: Callable[[int], None] | None = None,
    on_evaluate: Callable[[int, Any], None] | None = None,
    make_objective: Callable[[PretrainConfig, Beside], Objective] | None = None,
    make_source: Callable[[PretrainConfig, Tokenizer], Source] = ShardSource,
) -> Outcome:
    """Train, or go on training, the run that `config` describes.

    Everything is written to `config.folder`: config.json, tokenizer.jsonl, checkpoints/, metrics.jsonl, tensorboard/.
    SIGINT and SIGTERM end the run after the current step, with a checkpoint. A job of several processes (`processes.join`) agrees
    to stop at the next write of the log, whichever of them was signalled.

    Args:
        config: the run; the same in all processes.
        profile: steps to trace into profile/.
        on_step: called with the number of updates handed to the device after each one, before it is logged.
        on_evaluate: called with the number of updates and the model's parameters, after held-out data were measured, if there are any.
        make_objective: builds what to minimise; None: next-token cross-entropy. A run that distils wants
        `surgery.distill.make_objective`.
        make_source: builds what batches come from.

    Returns:
        How it ended.

    Raises:
        TrainingError: the run in the folder has another configuration or tokenizer, or another process is training it.
        Divergence: too many updates were skipped in a row, or too many spikes rolled back.
        CheckpointError: a checkpoint could not be written, or none is left that can be read.
        ValueError, OSError: a file that the configuration names is missing or unfit, or cannot be written.
    """
    with run_folder.lock(config.folder) as take_lock:
        return _train(config, take_lock, profile, on_step, on_evaluate, make_objective, make_source)


def _train(
    config: PretrainConfig,
    take_lock: Callable[[], None],
    profile: ProfileSteps | None,
    on_step: Callable[[int], None] | None,
    on_evaluate: Callable[[int, Any], None] | None,
    make_objective: Callable[[PretrainConfig, Beside], Objective] | None,
    make_source: Callable[[PretrainConfig, Tokenizer], Source],
) -> Outcome:
    # -- Build: mesh, model, optimizer, data, step ---------------------------------------------------------------------------------
    # Whatever can be refused is refused before anything is written.
    folder = config.folder
    tokenizer = run_folder.load_tokenizer(config)
    mesh = make_mesh(config.mesh, _devices(config))
    model = Plamo2(config.model, dtype=jnp.dtype(config.dtype), remat=config.remat, mesh=mesh)
    lengths = tokenizer.padded_byte_lengths(config.model.vocab_size)
    schedule = make_schedule(config.schedule, config.steps)
    if make_objective is not None:
        objective = make_objective(config, Beside(model, jnp.asarray(lengths), tokenizer, mesh))
    elif config.distillation is None:
        objective = next_token(model, jnp.asarray(lengths), config.z_loss, config.loss_chunk)
    else:
        raise TrainingError("a run with distillation needs make_objective=plamo2_jax.surgery.distill.make_objective")
    trained: Trained = getattr(objective, "trained", None) or WholeModel(config, model)
    optimizer = make_optimizer(config.optimizer, schedule, trained.axes)
    # What the objective reads besides parameters and tokens: arrays that are not trained, and more in each batch.
    frozen = (objective.frozen,) if getattr(objective, "frozen", None) is not None else ()
    augment, extra = getattr(objective, "augment", None), dict(getattr(objective, "extra", {}))

    def create(params: Any) -> TrainState:
        return TrainState.create(params, optimizer, config.seed, config.ema_decay is not None)

    # Shapes first: nothing is allocated before its sharding is known, and everything is made in it.
    shapes = jax.eval_shape(create, trained.abstract)
    places = param_shardings(trained.axes, shapes.params, mesh, config.sharding)
    shardings = state_shardings(shapes, optimizer, places)
    abstract = with_shardings(shapes, shardings)

    batch_shape = (config.data.batch_size, config.data.sequence_length)
    by_rows = batch_sharding(mesh, batch_shape, config.accumulation)
    part, parts = process_part(by_rows, batch_shape)
    source = make_source(config, tokenizer)
    iterator = source.train(part, parts)
    resuming = run_folder.is_resumed(config)
    description = run_folder.describe(config, tokenizer, source, getattr(objective, "description", {}))
    fork = None if resuming else open_fork(config, abstract, description)
    if resuming:
        description = run_folder.check_resumable(config, description)
    elif fork is not None:
        description[FORKED_FROM] = dict(fork.origin)
    take_lock()
    if run_folder.is_resumed(config) != resuming:
        raise TrainingError(
            f"{folder} was written by another process meanwhile; start this command again to go on from it"
        )
    run_folder.write_description(config, tokenizer, source, description)
    announce(config, trained.abstract, mesh, source.targets, run_folder.start(config, fork, resuming))

    def put(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the devices, from this process's rows of it."""
        if augment is not None:
            batch = augment(batch)
        return {
            name: jax.make_array_from_process_local_data(by_rows, array, (*batch_shape, *array.shape[2:]))
            for name, array in batch.items()
        }

    def put_tokens(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch that is only measured."""
        return {
            name: jax.make_array_from_process_local_data(by_rows, array, batch_shape) for name, array in batch.items()
        }

    abstract_batch = {
        name: jax.ShapeDtypeStruct(batch_shape, dtype, sharding=by_rows) for name, dtype in _BATCH_DTYPES.items()
    } | {
        name: jax.ShapeDtypeStruct((*batch_shape, *shape), dtype, sharding=by_rows)
        for name, (shape, dtype) in extra.items()
    }
    step_function = make_step(objective, optimizer, schedule, config.accumulation, shardings.params, config.ema_decay)
    jitted = jax.jit(step_function, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)
    with Compiling():
        train_step = jitted.lower(abstract, abstract_batch, *frozen).compile()
    evaluate = getattr(objective, "evaluate", None) or make_evaluator(model, lengths, config.loss_chunk)
    whole = getattr(objective, "whole", lambda params: params)

    guard = Guard(config.max_skipped, config.spike)
    about = {"config": to_json(config), "mesh": dict(mesh.shape), "processes": jax.process_count()}
    with RunCheckpoints(folder, config.keep, about) as checkpoints, processes.leave_when_broken(folder):
        # -- Restore: own run > fork > init_from > scratch -------------------------------------------------------------------------
        if resuming:
            state = checkpoints.restore(abstract, iterator, guard)
        elif fork is not None:
            state = fork.restore(abstract, iterator, guard)
        else:
            params = trained.create(shardings.params)
            state = jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)
            del params
        step = int(state.step)

        # -- Loop ----------------------------------------------------------------------------------------------------------------
        heldout: dict[str, Measured] = {}
        averaged: dict[str, Measured] = {}
        writes = jax.process_index() == 0
        with (
            MetricsLog(folder, step) if writes else NoLog() as log,
            StopRequest() as stop,
            StallWatchdog(folder, config.stall_seconds) as watchdog,
            Profiler(folder, profile) as profiler,
            tqdm(
                total=config.steps, initial=step, unit="step", desc=config.name, dynamic_ncols=True, disable=not writes
            ) as progress,
        ):
            devices = list(mesh.devices.ravel())
            goodput = Goodput(folder) if writes else None
            over, forward_only = getattr(objective, "over", {}), getattr(objective, "forward_only", ())
            window = Window(config, devices, log, guard, watchdog, goodput, over, forward_only)

            def roll_back(spike: Spike) -> TrainState | None:
                """The state before a spike, with the data up to its end passed over; None where there is no checkpoint to go back
                to.
                """
                before = checkpoints.step_before(spike.first, config.checkpoint_every)
                if before is None:
                    guard.go_on()
                    return None
                saved = Guard(config.max_skipped, config.spike)
                state = checkpoints.restore_step(before, abstract, iterator, saved)
                for _ in range(guard.roll_back(spike, saved)):
                    next(iterator)
                log.drop_after(before)
                # Under the step that comes next: whoever goes on from this checkpoint meets the spike and writes this line again.
                log.write(before + 1, {"rollbacks": guard.rollbacks, "passed_over": guard.passed_over})
                return state

            while step < config.steps:
                step += 1
                profiler.before(step)
                with window.clock.data_wait():
                    batch = put(next(iterator))
                state, metrics = train_step(state, batch, *frozen)
                window.add(step, metrics)
                profiler.after(step, metrics)
                if on_step is not None:
                    on_step(step)
                complete, due = step == config.steps, step % config.checkpoint_every == 0
                writing = complete or due or step % config.log_every == 0 or step % config.evaluate_every == 0
                stopping = stop.agreed(writing)
                saving = complete or stopping or due
                # Whoever asks a process to end may not wait for a pass over the held-out text.
                measures = bool(config.heldout) or on_evaluate is not None
                evaluating = measures and (complete or step % config.evaluate_every == 0) and not stopping
                if writing or stopping:
                    spike = window.write()
                    progress.set_postfix(window.shown)
                    if spike is not None and (restored := roll_back(spike)) is not None:
                        state, step = restored, int(restored.step)
                        _say_rolled_back(spike, step)
                        progress.n = step
                        window.restart()
                        continue
                if evaluating and config.heldout:
                    for language in config.heldout:
                        batches = source.heldout(language, part, parts)
                        heldout[language] = evaluate(state.params, map(put_tokens, _beating(batches, watchdog)))
                        if state.ema is not None:
                            averaged[language] = evaluate(state.ema, map(put_tokens, _beating(batches, watchdog)))
                    log.write(step, _heldout_figures(heldout) | _heldout_figures(averaged, "heldout_ema"))
                if evaluating and on_evaluate is not None:
                    watchdog.beat()
                    on_evaluate(step, whole(state.params))
                log.flush()
                if saving:
                    log.upload()  # Before the checkpoint, so that whoever goes on from that finds all lines up to it.
                    checkpoints.save(state, iterator, guard)
                elif writing:
                    checkpoints.check()
                progress.update()
                if evaluating or saving:
                    window.restart()
                if stopping:
                    break
            signal = stop.signal if step < config.steps else None
        return Outcome(step, signal, heldout)


def _say_rolled_back(spike: Spike, step: int) -> None:
    print(
        f"the loss rose far above its median {spike.median:.4g} in steps {spike.first} to {spike.last}: back to the checkpoint of step "
        f"{step}, past the data up to step {spike.last}",
        file=sys.stderr,
    )


def _beating(batches: Iterable[Any], watchdog: StallWatchdog) -> Iterator[Any]:
    """The batches, each of which shows the watchdog that an evaluation moves."""
    for batch in batches:
        watchdog.beat()
        yield batch


def _devices(config: PretrainConfig) -> list[jax.Device]:
    """The devices to train on: as many as the rows of a micro-batch can be divided among, which is said if it is not all.

    Raises:
        TrainingError: some would be idle in a job of several processes, each of which must have a part in it.
    """
    devices, rows = jax.devices(), config.data.batch_size // config.accumulation
    usable = config.mesh.usable_devices(len(devices), rows)
    if usable < len(devices):
        said = (
            f"training on {usable} of {len(devices)} devices: a micro-batch has {rows} rows (data.batch_size / accumulation), and "
            "only a multiple of the number of parts of the batch (mesh.data × mesh.fsdp) uses them all"
        )
        if jax.process_count() > 1:
            raise TrainingError(f"{said}; with several processes that is not allowed")
        tqdm.write(said, file=sys.stderr)
    return devices[:usable]


def _heldout_figures(heldout: Mapping[str, Measured], prefix: str = "heldout") -> dict[str, float]:
    """`PREFIX/LANGUAGE/FIGURE` for the log: `heldout`, or `heldout_ema` measured with the moving average."""
    return {
        f"{prefix}/{language}/{name}": value
        for language, result in heldout.items()
        for name, value in result.figures().items()
    }
