"""LoRA (arXiv:2106.09685): training of low-rank adapters to a frozen model.

The model multiplies by base and adapter separately (`model.low_rank`), so no gradient and no copy of the model's size exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.checkpoint import BASE_FINGERPRINT, describe_frozen
from plamo2_jax.data.batch import Batch
from plamo2_jax.model import Plamo2, logical_axes
from plamo2_jax.model.axes import is_matrix, map_with_axes
from plamo2_jax.train.task import EvalResult, Metrics, TrainTask
from plamo2_jax.train.trainable import Trainable

BASE = "base"
"""Name of the base parameters among the frozen arrays of a task."""


def with_adapters(task: TrainTask, adapters: Adapters, params: Any) -> TrainTask:
    """Return a task that trains adapters instead of the model's parameters, which are frozen. In a plan `params` are their shapes."""

    def loss_fn(params: Any, batch: Batch, rng: jax.Array, frozen: Mapping[str, Any]) -> tuple[jax.Array, Metrics]:
        for_adapters, for_inner = jax.random.split(rng)
        return task.loss_fn(adapters.attach(frozen[BASE], params, for_adapters), batch, for_inner, frozen)

    def to_model_params(params: Any, frozen: Mapping[str, Any]) -> Any:
        return adapters.attach(frozen[BASE], params)

    def evaluate(params: Any, batches: Iterable[Batch], frozen: Mapping[str, Any]) -> EvalResult:
        return task.evaluate(to_model_params(params, frozen), batches, frozen)

    return dataclasses.replace(
        task,
        loss_fn=loss_fn,
        trainable=Trainable(adapters.axes, adapters.abstract, adapters.create),
        frozen={**task.frozen, BASE: cast_base(adapters, params)},
        evaluate=evaluate,
        to_model_params=to_model_params,
        description={**task.description, **describe_frozen(BASE_FINGERPRINT, adapters.config, params)},
    )


def cast_base(adapters: Adapters, params: Any) -> Any:
    """Return the base parameters, or their shapes, with matrices in `LoraConfig.base_dtype`."""
    dtype = adapters.lora.base_dtype

    def cast(names: tuple, leaf: Any) -> Any:
        if not is_matrix(names):
            return leaf
        return leaf.update(dtype=dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.astype(dtype)

    return map_with_axes(cast, logical_axes(Plamo2(adapters.config)), params)
