"""LoRA (arXiv:2106.09685): train low-rank adapters to a model whose own parameters are frozen.

The model multiplies by base and adapter one after the other (`model.low_rank`): no gradient and no copy of the model's size is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.checkpoint import BASE_FINGERPRINT, fingerprint
from plamo2_jax.data.batch import Batch
from plamo2_jax.model import Plamo2, logical_axes
from plamo2_jax.model.axes import is_matrix, map_with_axes
from plamo2_jax.train.task import EvalResult, Metrics, TrainTask
from plamo2_jax.train.trainable import Trainable

BASE = "base"
"""Name of the model's parameters among the frozen arrays of a task that trains adapters."""


def with_adapters(task: TrainTask, adapters: Adapters, params: Any) -> TrainTask:
    """Return a task that trains adapters to the parameters of another task, which are frozen.

    Args:
        task: trains the model's parameters.
        adapters: the trained parameters.
        params: the model's parameters, or their shapes in a plan.
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array, frozen: Mapping[str, Any]) -> tuple[jax.Array, Metrics]:
        for_adapters, for_inner = jax.random.split(rng)
        return task.loss_fn(adapters.attach(frozen[BASE], params, for_adapters), batch, for_inner, frozen)

    def to_model_params(params: Any, frozen: Mapping[str, Any]) -> Any:
        return adapters.attach(frozen[BASE], params)

    def evaluate(params: Any, batches: Iterable[Batch], frozen: Mapping[str, Any]) -> EvalResult:
        return task.evaluate(to_model_params(params, frozen), batches, frozen)

    # A fingerprint picks values of whole arrays, which no process of several has.
    readable = jax.process_count() == 1 and isinstance(jax.tree.leaves(params)[0], jax.Array)
    described = {BASE_FINGERPRINT: fingerprint(adapters.config, params)} if readable else {}
    return dataclasses.replace(
        task,
        loss_fn=loss_fn,
        trainable=Trainable(adapters.axes, adapters.abstract, adapters.create),
        frozen={**task.frozen, BASE: cast_base(adapters, params)},
        evaluate=evaluate,
        to_model_params=to_model_params,
        description={**task.description, **described},
    )


def cast_base(adapters: Adapters, params: Any) -> Any:
    """Return the base with its matrices in `LoraConfig.base_dtype`; of shapes, their shapes."""
    dtype = adapters.lora.base_dtype

    def cast(names: tuple, leaf: Any) -> Any:
        if not is_matrix(names):
            return leaf
        return leaf.update(dtype=dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.astype(dtype)

    return map_with_axes(cast, logical_axes(Plamo2(adapters.config)), params)
