"""The program of a run: mesh, model, task, optimizer, shardings and train step, built in one place.

The train loop compiles and runs it, `plamo2 plan` compiles it for a TPU slice, and experiments take its parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from plamo2_jax.data.batch import batch_shapes
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.sharding.mesh import make_mesh
from plamo2_jax.sharding.rules import batch_sharding, param_shardings, replicated, with_shardings
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.optimizer import make_optimizer
from plamo2_jax.train.schedule import make_schedule
from plamo2_jax.train.state import TrainState, state_shardings
from plamo2_jax.train.step import TrainStep, make_step
from plamo2_jax.train.task import TaskContext, TrainTask


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """What `build_train_program` builds. Nothing is allocated but the frozen arrays of the task."""

    mesh: Mesh
    model: Plamo2
    task: TrainTask
    optimizer: optax.GradientTransformation
    state: TrainState
    """Shapes, dtypes and shardings of everything that a step changes."""
    batch: Mapping[str, jax.ShapeDtypeStruct]
    """Shapes, dtypes and shardings of a batch."""
    step: TrainStep
    """`(state, batch, frozen) -> (state, metrics)`, not yet compiled."""
    seed: int
    keeps_ema: bool

    @property
    def shardings(self) -> TrainState:
        """The shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    @property
    def rows(self) -> NamedSharding:
        """The sharding of a batch's rows."""
        return self.batch["tokens"].sharding

    @property
    def arguments(self) -> tuple[TrainState, Mapping[str, jax.ShapeDtypeStruct], Mapping[str, Any]]:
        """The arguments of the step; frozen arrays as they are."""
        return self.state, self.batch, self.task.frozen

    def jit(self) -> jax.stages.Wrapped:
        """The step as it is compiled: the state is donated, and comes out as it was placed."""
        return jax.jit(self.step, out_shardings=(self.shardings, replicated(self.mesh)), donate_argnums=0)

    def create_state(self) -> TrainState:
        """Return the state before the first update, from the task's first parameters."""
        shardings = self.shardings
        params = self.task.trainable.create(shardings.params)
        return jax.jit(self._create, out_shardings=shardings, donate_argnums=0)(params)

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Put a batch onto the devices, from this process's rows of it."""
        shape = self.batch["tokens"].shape
        return {
            name: jax.make_array_from_process_local_data(self.rows, array, (*shape, *array.shape[2:]))
            for name, array in batch.items()
        }

    def _create(self, params: Any) -> TrainState:
        return TrainState.create(params, self.optimizer, self.seed, self.keeps_ema)


def build_train_program(
    config: RunConfig,
    devices: Sequence[jax.Device],
    tokenizer: Tokenizer | None = None,
    implementations: Mapping[str, str] | None = None,
) -> TrainProgram:
    """Build the program of a run.

    Args:
        config: the run.
        devices: to run on, or of a topology to compile for.
        tokenizer: of the run. None, in a plan: nothing is read from disk but the shape of a teacher, and frozen arrays are shapes.
        implementations: fields of `Plamo2` that name kernels; None: chosen by the platform of this process.

    Raises:
        ValueError: model, batch or mesh cannot be divided over the devices, or a file that the task names is missing or unfit.
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
    # Shapes first: nothing is allocated before its sharding is known.
    shapes = jax.eval_shape(
        lambda params: TrainState.create(params, optimizer, config.seed, config.ema_decay is not None),
        task.trainable.abstract,
    )
    placed = param_shardings(task.trainable.axes, shapes.params, mesh, config.sharding)
    state = with_shardings(shapes, state_shardings(shapes, optimizer, placed))
    shape = (config.data.batch_size, config.data.sequence_length)
    rows = batch_sharding(mesh, shape, config.accumulation)
    batch = batch_shapes(*shape, task.batch_spec, rows)
    step = make_step(task.loss_fn, optimizer, schedule, config.accumulation, placed, config.ema_decay)
    return TrainProgram(mesh, model, task, optimizer, state, batch, step, config.seed, config.ema_decay is not None)
