"""TrainTask: what a run trains, what it minimizes, and what its batches hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch, BatchSpec
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.sharding.rules import Strategy, with_shardings
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.trainable import Trainable, load_params, model_shardings

if TYPE_CHECKING:
    from jax.sharding import Mesh

PROCESSED = "processed"
"""Name of the number of tokens that a step read, trained on or not. The train step adds it to the sums of the task."""

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Batch, jax.Array, Mapping[str, Any]], tuple[jax.Array, Metrics]]
"""`(params, batch, rng, frozen) -> (loss, sums)`. The loss is a weighted mean over the batch. The sums are scalar float32, so that the sums
of several micro-batches or steps add up; `sums["weight"]` is the total weight that the loss is a mean over."""


class EvalResult(Protocol):
    """What was measured on held-out data."""

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name."""


@dataclasses.dataclass(frozen=True)
class TrainTask:
    """What one run trains. Change a task with `dataclasses.replace`."""

    loss_fn: LossFn
    """The loss of a batch, and sums for the log."""
    trainable: Trainable
    """The parameters that the optimizer updates: those of the model, or adapters."""
    evaluate: Callable[[Any, Iterable[Mapping[str, Any]], Mapping[str, Any]], EvalResult]
    """`(params, batches, frozen)` → what held-out batches come to. `params` are trainable parameters."""
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arrays that are not trained, such as a teacher's parameters: a tree by name. The train step passes them to `loss_fn`, so that they
    are arguments of the compiled program and not constants in it. In a plan the leaves are `jax.ShapeDtypeStruct`."""
    batch_spec: BatchSpec = dataclasses.field(default_factory=dict)
    """What a batch holds besides the five standard arrays, from the data source or from `transform_batch`."""
    transform_batch: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None
    """Adds arrays to a training batch on the host."""
    denominators: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name of a sum → name of the sum that counts its terms, where that is not `weight`."""
    to_model_params: Callable[[Any, Mapping[str, Any]], Any] = lambda params, frozen: params
    """`(trainable parameters, frozen)` → parameters of the model."""
    forward_only: tuple[ModelConfig, ...] = ()
    """Models that read the same tokens without a backward pass, for the FLOPs of a step."""
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values for config.json that must be the same when the run is resumed."""


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """What is built before the task: the model, and where its parameters are placed."""

    model: Plamo2
    byte_lengths: jax.Array
    """[v] int32, UTF-8 bytes of each token."""
    mesh: Mesh
    sharding: Strategy
    tokenizer: Tokenizer | None = None
    """None in a plan: then nothing is read from disk but the shape of a teacher, and frozen arrays are shapes."""

    @property
    def is_planned(self) -> bool:
        """Whether the program is only described."""
        return self.tokenizer is None

    def load_params(self, folder: Path, model: Plamo2 | None = None) -> Any:
        """Return the parameters of a folder, placed as the run places its own.

        Args:
            folder: run folder or folder of the public layout.
            model: the network; None: that of the run.

        Raises:
            ValueError: the folder holds a model of another shape, is damaged, or holds no model.
        """
        shape = (model or self.model).config
        abstract, shardings = model_shardings(shape, self.mesh, self.sharding)
        return with_shardings(abstract, shardings) if self.is_planned else load_params(folder, shape, shardings)


def means(sums: Mapping[str, float], denominators: Mapping[str, str]) -> dict[str, float]:
    """Divide the sums of a task by their counts, in the order of their names.

    Args:
        sums: sums of a task, `weight` among them.
        denominators: see `TrainTask.denominators`.

    Returns:
        Means by name, without the counts and without a mean over nothing.
    """
    counts = {"weight", *denominators.values()}
    totals = {name: sums[denominators.get(name, "weight")] for name in sorted(sums.keys() - counts)}
    return {name: sums[name] / total for name, total in totals.items() if total}
