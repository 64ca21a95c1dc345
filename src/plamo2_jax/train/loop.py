"""The pretraining loop: build, restore, then step, log, evaluate and checkpoint until done.

Where the first state comes from, in this order:

1. the newest checkpoint of this very run, when its folder has one (its configuration must be the same: an error names what differs);
2. the parameters of `init_from`, with a fresh optimizer;
3. scratch.

A run that was stopped and goes on makes the same updates, bit for bit, as one that was never stopped: a checkpoint holds parameters,
optimizer, step, random key and the position in the data, and nothing else decides an update.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from plamo2_jax import checkpoint
from plamo2_jax.data.pipeline import heldout_batches, train_iterator
from plamo2_jax.eval.heldout import byte_lengths
from plamo2_jax.eval.perplexity import HeldOut, make_evaluator
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, init_params, logical_axes
from plamo2_jax.sharding.mesh import make_mesh
from plamo2_jax.sharding.rules import batch_sharding, param_shardings, process_part, replicated, with_shardings
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.checkpoints import RunCheckpoints
from plamo2_jax.train.config import PretrainConfig, differences, to_json
from plamo2_jax.train.flops import model_flops_utilization
from plamo2_jax.train.metrics import MetricsLog, step_figures
from plamo2_jax.train.objective import Metrics, next_token
from plamo2_jax.train.optimizer import make_optimizer
from plamo2_jax.train.schedule import make_schedule
from plamo2_jax.train.state import TrainState, state_shardings
from plamo2_jax.train.step import make_step
from plamo2_jax.train.stop import StopRequest

_BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "loss_weights": jnp.float32,
}


class TrainingError(ValueError):
    """A run cannot start, go on or resume; the message says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `pretrain` ended."""

    step: int
    """Updates made, those before a resume included."""
    signal: int | None
    """The signal that stopped it early; None for a run that is complete."""
    heldout: Mapping[str, HeldOut]
    """The last measurement on held-out text, by language."""


def pretrain(config: PretrainConfig, *, on_step: Callable[[int], None] | None = None) -> Outcome:
    """Train, or go on training, the run that `config` describes.

    Everything is written to `config.folder`: config.json, tokenizer.jsonl, checkpoints/, metrics.jsonl, tensorboard/.
    SIGINT and SIGTERM end the run after the current step, with a checkpoint.

    Args:
        config: the run.
        on_step: called with the number of updates made after each one, before it is logged.

    Returns:
        How it ended.

    Raises:
        TrainingError: the run in the folder has another configuration or tokenizer, or the loss is no longer finite.
        ValueError: a file that the configuration names is missing or unfit.
    """
    # -- Build: mesh, model, optimizer, data, step ---------------------------------------------------------------------------------
    # Whatever can be refused is refused before anything is written.
    folder = config.folder
    tokenizer = _load_tokenizer(config)
    mesh = make_mesh(config.mesh, _devices(config))
    model = Plamo2(config.model, dtype=jnp.dtype(config.dtype), remat=config.remat, mesh=mesh)
    lengths = byte_lengths(tokenizer, config.model.vocab_size)
    schedule = make_schedule(config.schedule, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, logical_axes(model))
    objective = next_token(model, jnp.asarray(lengths), config.z_loss, config.loss_chunk)

    def create(params: Any) -> TrainState:
        return TrainState.create(params, optimizer, config.seed)

    # Shapes first: nothing is allocated before its sharding is known, and everything is made in it.
    shapes = jax.eval_shape(create, abstract_params(model))
    places = param_shardings(logical_axes(model), shapes.params, mesh, config.sharding)
    shardings = state_shardings(shapes, optimizer, places)
    abstract = with_shardings(shapes, shardings)
    initialise = jax.jit(lambda: init_params(model, jax.random.key(config.seed)), out_shardings=shardings.params)

    batch_shape = (config.data.batch_size, config.data.sequence_length)
    by_rows = batch_sharding(mesh, batch_shape, config.accumulation)
    part, parts = process_part(by_rows, batch_shape)
    iterator = train_iterator(config.data, tokenizer, process_index=part, process_count=parts)
    resuming = _open_folder(config, tokenizer)

    def put(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the devices, from this process's rows of it."""
        return {
            name: jax.make_array_from_process_local_data(by_rows, array, batch_shape) for name, array in batch.items()
        }

    abstract_batch = {
        name: jax.ShapeDtypeStruct(batch_shape, dtype, sharding=by_rows) for name, dtype in _BATCH_DTYPES.items()
    }
    train_step = (
        jax.jit(
            make_step(objective, optimizer, schedule, config.accumulation, shardings.params),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        )
        .lower(abstract, abstract_batch)
        .compile()
    )
    evaluate = make_evaluator(model, lengths, config.loss_chunk)

    with RunCheckpoints(folder, config.keep) as checkpoints:
        # -- Restore: own run > init_from > scratch --------------------------------------------------------------------------------
        if resuming:
            state = checkpoints.restore(abstract, iterator)
        else:
            if config.init_from is not None:
                params = checkpoint.restore_params(config.init_from, abstract.params)
            else:
                params = initialise()
            state = jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)
            del params
        start = int(state.step)

        # -- Loop ----------------------------------------------------------------------------------------------------------------
        heldout: dict[str, HeldOut] = {}
        with (
            MetricsLog(folder, start) as log,
            StopRequest() as stop,
            tqdm(total=config.steps, initial=start, unit="step", desc=config.name, dynamic_ncols=True) as progress,
        ):
            window = _Window(config, mesh.devices.ravel())
            for step in range(start + 1, config.steps + 1):
                state, metrics = train_step(state, put(next(iterator)))
                window.add(step, metrics)
                if on_step is not None:
                    on_step(step)
                stopping, complete = stop.signal is not None, step == config.steps
                saving = complete or stopping or step % config.checkpoint_every == 0
                # Whoever asks a process to end may not wait for a pass over the held-out text.
                due = complete or (step % config.evaluate_every == 0 and not stopping)
                evaluating = due and bool(config.heldout)
                if evaluating or saving or step % config.log_every == 0:
                    progress.set_postfix(window.write(log))
                if evaluating:
                    for language, shards in config.heldout.items():
                        batches = heldout_batches(
                            config.data, shards, tokenizer, process_index=part, process_count=parts
                        )
                        heldout[language] = evaluate(state.params, map(put, batches))
                    log.write(step, _heldout_figures(heldout))
                log.flush()
                if saving:
                    checkpoints.save(state, iterator)
                progress.update()
                if evaluating or saving:
                    window.restart()
                if stopping:
                    break
        step = int(state.step)
        return Outcome(step, stop.signal if step < config.steps else None, heldout)


class _Window:
    """Steps whose figures are still on the device, so that the host runs ahead of it between writes of the log."""

    def __init__(self, config: PretrainConfig, devices: Sequence[jax.Device]):
        self._config = config
        self._devices = devices
        self.restart()

    def restart(self) -> None:
        """Start the clock of the rates anew, after time that was not spent on steps."""
        self._steps: list[tuple[int, Metrics]] = []
        self._since = time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        self._steps.append((step, metrics))

    def write(self, log: MetricsLog) -> dict[str, str]:
        """Wait for the device, write a line for each step, and return what the progress bar shows."""
        lines = [
            (step, {name: float(value) for name, value in sums.items()}) for step, sums in jax.device_get(self._steps)
        ]
        seconds = time.perf_counter() - self._since
        rates = self._rates(sum(sums["tokens"] for _, sums in lines) / seconds)
        for step, sums in lines:
            figures = step_figures(sums)
            # JSON has no number for it, and no step after it is worth its time.
            if not math.isfinite(figures["loss"]) or not math.isfinite(figures["grad_norm"]):
                raise TrainingError(
                    f"step {step}: loss {figures['loss']} with gradient norm {figures['grad_norm']}; lower "
                    f"schedule.learning_rate ({self._config.schedule.learning_rate}) or optimizer.clip_norm, or lengthen the warm-up"
                )
            log.write(step, figures | rates)
        self.restart()
        shown = {"loss": f"{figures['loss']:.3f}"}
        if "bits_per_byte" in figures:
            shown["bits/byte"] = f"{figures['bits_per_byte']:.3f}"
        return shown | {"tokens/s": f"{rates['tokens_per_second']:,.0f}"}

    def _rates(self, tokens_per_second: float) -> dict[str, float]:
        config, devices = self._config, self._devices
        mfu = model_flops_utilization(
            config.model, config.data.sequence_length, tokens_per_second, devices[0].device_kind, len(devices)
        )
        return {"tokens_per_second": tokens_per_second} | ({} if mfu is None else {"mfu": mfu})


def _load_tokenizer(config: PretrainConfig) -> Tokenizer:
    if not config.tokenizer.exists():
        raise TrainingError(
            f"PretrainConfig.tokenizer={str(config.tokenizer)!r} does not exist; train one or copy one there"
        )
    return Tokenizer.load(config.tokenizer)


def _open_folder(config: PretrainConfig, tokenizer: Tokenizer) -> bool:
    """Write what describes the run, or check that it is the run already there; returns whether there is a checkpoint to go on from."""
    folder = config.folder
    description = {**to_json(config), "tokenizer_fingerprint": tokenizer.fingerprint}
    resuming = checkpoint.latest_step(folder) is not None
    if resuming and (different := differences(description, checkpoint.read_config(folder))):
        raise TrainingError(
            f"{folder} holds a run of another configuration, which this one cannot resume ({'; '.join(different)}); give this run "
            "another name, or init_from that one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / checkpoint.CONFIG, description)
    tokenizer.save(folder / checkpoint.TOKENIZER)
    return resuming


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


def _heldout_figures(heldout: Mapping[str, HeldOut]) -> dict[str, float]:
    """`heldout/LANGUAGE/FIGURE` for the log."""
    return {
        f"heldout/{language}/{name}": value
        for language, result in heldout.items()
        for name, value in result.figures().items()
    }
