"""The program of a run: mesh, model, task, optimizer, shardings and train step.

The train loop compiles and runs it, `plamo2 plan` compiles it for a TPU slice, and experiments use its parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from plamo2_jax.data.batch import Batch, batch_shapes
from plamo2_jax.model.float8 import with_float8
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.sharding.compiler_options import compiler_options
from plamo2_jax.sharding.mesh import make_mesh
from plamo2_jax.sharding.rules import batch_sharding, param_shardings, replicated, with_shardings
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.gather_once import GatherOnce
from plamo2_jax.train.optimizer import make_optimizer
from plamo2_jax.train.schedule import make_schedule
from plamo2_jax.train.state import TrainState, state_shardings
from plamo2_jax.train.step import TrainStep, make_step
from plamo2_jax.train.task import LossFn, Metrics, TaskContext, TrainTask


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The parts of a training program. Only the frozen arrays of the task are allocated."""

    mesh: Mesh
    model: Plamo2
    task: TrainTask
    optimizer: optax.GradientTransformation
    state: TrainState
    """Shapes, dtypes and shardings of the train state."""
    batch: Mapping[str, jax.ShapeDtypeStruct]
    """Shapes, dtypes and shardings of a batch."""
    step: TrainStep
    """`(state, batch, frozen) -> (state, metrics)`, not yet compiled."""
    new_state: Callable[[Any], TrainState]
    """Maps initial parameters to the state before the first update."""
    compiler_options: Mapping[str, str]
    """Options of the compiler for the devices of the mesh."""

    @property
    def shardings(self) -> TrainState:
        """Shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    @property
    def rows(self) -> NamedSharding:
        """Sharding of batch arrays."""
        return self.batch["tokens"].sharding

    @property
    def arguments(self) -> tuple[TrainState, Mapping[str, jax.ShapeDtypeStruct], Mapping[str, Any]]:
        """Arguments to lower the step with."""
        return self.state, self.batch, self.task.frozen

    def jit(self) -> jax.stages.Wrapped:
        """Return the jitted step. It donates the state, and returns the new state with the same shardings."""
        shardings, options = (self.shardings, replicated(self.mesh)), dict(self.compiler_options)
        return jax.jit(self.step, out_shardings=shardings, donate_argnums=0, compiler_options=options)

    def create_state(self) -> TrainState:
        """Allocate the state before the first update, from the initial parameters of the task."""
        shardings = self.shardings
        params = self.task.trainable.create(shardings.params)
        return jax.jit(self.new_state, out_shardings=shardings, donate_argnums=0)(params)

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Put a batch onto the devices. Each process gives its own rows."""
        shape = self.batch["tokens"].shape
        return {
            name: jax.make_array_from_process_local_data(self.rows, array, (*shape, *array.shape[2:]))
            for name, array in batch.items()
        }


def build_train_program(
    config: RunConfig,
    devices: Sequence[jax.Device],
    tokenizer: Tokenizer | None = None,
    implementations: Mapping[str, str] | None = None,
) -> TrainProgram:
    """Build the program of a run.

    Args:
        devices: Devices of this job, or of a topology to compile for.
        tokenizer: Tokenizer of the run; None for a plan: frozen arrays are shapes, and only the shape of a teacher is read from disk.
        implementations: Fields of `Plamo2` that name kernels; None: chosen by the platform of this process.

    Raises:
        PlamoError: Model, batch or mesh cannot be divided over the devices, or a file that the task names is missing or invalid.
    """
    mesh = make_mesh(config.mesh, devices)
    model = Plamo2(
        config.model, dtype=jnp.dtype(config.dtype), remat=config.remat, mesh=mesh, **(implementations or {})
    )
    vocab = config.model.vocab_size
    lengths = np.zeros(vocab, np.int32) if tokenizer is None else tokenizer.padded_byte_lengths(vocab)
    task = config.task.make_task(config, TaskContext(model, jnp.asarray(lengths), mesh, config.sharding, tokenizer))
    schedule = make_schedule(config.schedule, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, task.trainable.axes)

    def new_state(params: Any) -> TrainState:
        return TrainState.create(params, optimizer, config.seed, config.ema_decay is not None)

    # Shapes first: nothing is allocated before its sharding is known.
    shapes = jax.eval_shape(new_state, task.trainable.abstract)
    placed = param_shardings(task.trainable.axes, shapes.params, mesh, config.sharding)
    state = with_shardings(shapes, state_shardings(shapes, optimizer, placed))
    shape = (config.data.batch_size, config.data.sequence_length)
    rows = batch_sharding(mesh, shape, config.accumulation)
    batch = batch_shapes(*shape, task.batch_spec, rows)
    loss_fn = task.loss_fn
    if config.linear_type == "fp8":
        loss_fn = _in_float8(loss_fn, task.trainable.axes)
    gather_once = None
    if config.sharding in ("zero1", "zero2"):
        settings = {"dtype": jnp.dtype(config.dtype), "sends_each": config.sharding == "zero2"}
        gather_once = GatherOnce(mesh, placed, task.trainable.axes, **settings)
    step = make_step(loss_fn, optimizer, schedule, config.accumulation, placed, config.ema_decay, gather_once)
    options = compiler_options(mesh.devices.flat[0], config.compiler_options)
    return TrainProgram(mesh, model, task, optimizer, state, batch, step, new_state, options)


def _in_float8(loss_fn: LossFn, logical_axes: Any) -> LossFn:
    """Return a loss function that multiplies by the trained projections and MLP in 8-bit floats. Frozen models are not changed."""

    def in_float8(params: Any, batch: Batch, rng: jax.Array, frozen: Any = None) -> tuple[jax.Array, Metrics]:
        return loss_fn(with_float8(params, logical_axes), batch, rng, frozen)

    return in_float8
