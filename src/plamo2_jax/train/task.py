"""TrainTask: the trainable parameters, the loss and the batches of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch, BatchSpec
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.sharding.rules import Strategy, param_shardings, with_shardings
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.trainable import Trainable, load_params

PROCESSED = "processed"
"""Name of the number of tokens that a step reads, without padding. The train step adds it to the sums of the task."""

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Batch, jax.Array, Mapping[str, Any]], tuple[jax.Array, Metrics]]
"""`(params, batch, rng, frozen) -> (loss, sums)`. The loss is a weighted mean over the batch, and `sums["weight"]` is its total weight. The
sums are float32 scalars that can be added over micro-batches and steps."""


class EvalResult(Protocol):
    """Result of an evaluation on held-out data."""

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name."""


@dataclasses.dataclass(frozen=True)
class TrainTask:
    """What one run trains. Change a task with `dataclasses.replace`."""

    loss_fn: LossFn
    """Loss of a batch, and sums for the log."""
    trainable: Trainable
    """Parameters that the optimizer updates: the parameters of the model, or adapters."""
    evaluate: Callable[[Any, Iterable[Mapping[str, Any]], Mapping[str, Any]], EvalResult]
    """`(params, batches, frozen) -> result` on held-out batches. `params` are trainable parameters."""
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arrays that are not trained, such as a teacher's parameters: trees by name. The train step passes them to `loss_fn` as arguments, so
    that they are not constants of the compiled program. In a plan, the leaves are `jax.ShapeDtypeStruct`."""
    batch_spec: BatchSpec = dataclasses.field(default_factory=dict)
    """Arrays of a batch besides the five standard arrays, from the data source or from `transform_batch`."""
    transform_batch: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None
    """Function that adds arrays to a training batch on the host."""
    denominators: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of sums mapped to their denominators, which are names of sums too. The default denominator is `weight`."""
    to_model_params: Callable[[Any, Mapping[str, Any]], Any] = lambda params, frozen: params
    """`(trainable parameters, frozen) -> parameters of the model`."""
    forward_only: tuple[ModelConfig, ...] = ()
    """Models that read the same tokens without a backward pass, to count the FLOPs of a step."""
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values for config.json that must be the same when the run is resumed."""


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """The parts of a program that are built before the task."""

    model: Plamo2
    byte_lengths: jax.Array
    """[v] int32, UTF-8 bytes of each token."""
    mesh: Mesh
    sharding: Strategy
    tokenizer: Tokenizer | None = None
    """None in a plan: frozen arrays are shapes, and only the shape of a teacher is read from disk."""

    @property
    def is_planned(self) -> bool:
        """Whether the program is built for a plan and not to run."""
        return self.tokenizer is None

    def load_params(self, folder: Path, model: Plamo2 | None = None) -> Any:
        """Load the parameters of a model, sharded like the parameters of the run. In a plan, return their shapes.

        Args:
            folder: Run folder, or folder in Hugging Face format.
            model: Network with these parameters; None: the model of the run.

        Raises:
            PlamoError: The folder has no model or a model with a different shape, or is damaged.
        """
        model = model or self.model
        abstract = abstract_params(model)
        shardings = param_shardings(logical_axes(model), abstract, self.mesh, self.sharding)
        return with_shardings(abstract, shardings) if self.is_planned else load_params(folder, model.config, shardings)


def means(sums: Mapping[str, float], denominators: Mapping[str, str]) -> dict[str, float]:
    """Divide the sums of a task by their denominators (see `TrainTask.denominators`).

    Returns:
        Means by name, sorted, without the denominators and without sums whose denominator is 0.
    """
    counts = {"weight", *denominators.values()}
    totals = {name: sums[denominators.get(name, "weight")] for name in sorted(sums.keys() - counts)}
    return {name: sums[name] / total for name, total in totals.items() if total}
