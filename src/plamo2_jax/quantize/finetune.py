"""Training of the scales of norms and of quantized matrices by distillation from the float model. The quantized values do not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.model import Plamo2
from plamo2_jax.model.plamo2 import declarations
from plamo2_jax.model.quantized import QuantizedArray
from plamo2_jax.quantize.divergence import features, kl_divergence


def finetune_scales(
    config: ModelConfig,
    teacher: Mapping[str, Any],
    student: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    on_step: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Return the student with trained scales.

    Each scale is multiplied by exp(δ), and each factor of a norm (its offset + scale) by 1 + δ. Adam minimizes KL(teacher || student) over
    all δ, at a rate that falls linearly to 0. Activations are not quantized in training, because rounding has no gradient.

    Args:
        config: Config of the model.
        teacher: Float parameters by path, of the model without a scan over layers.
        student: Quantized parameters by path.
        batches: Training batches, used in turn.
        steps: Number of steps, of one batch each.
        learning_rate: Rate of the first step.
        on_step: Called after each step with the divergence in nats per token.
    """
    model = Plamo2(config, scan_layers=False)
    declared = flax.traverse_util.flatten_dict(declarations(model), sep="/")
    offsets = {path: each.norm_offset for path, each in declared.items() if each.norm_offset is not None}
    changes = {path: jnp.zeros_like(student[path]) for path in offsets}
    changes |= {path: jnp.zeros_like(leaf.scales) for path, leaf in student.items() if isinstance(leaf, QuantizedArray)}
    optimizer = optax.adam(optax.linear_schedule(learning_rate, 0, steps))
    state = optimizer.init(changes)

    def loss(changes: dict, student: Mapping[str, Any], expected: jax.Array, teacher: Any, batch: Batch) -> jax.Array:
        changed = apply_changes(student, changes, offsets)
        # Products with quantized matrices need not have a gradient, so they are computed with float ones.
        flat = {p: leaf.dequantize() if isinstance(leaf, QuantizedArray) else leaf for p, leaf in changed.items()}
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        return kl_divergence(model, teacher, expected, params, features(model, params, batch), batch)

    @jax.jit
    def step(changes: dict, state: Any, student: Mapping[str, Any], teacher: Mapping[str, Any], batch: Batch):
        params = flax.traverse_util.unflatten_dict(teacher, sep="/")
        expected = features(model, params, batch)
        value, gradient = jax.value_and_grad(loss)(changes, student, expected, params, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(changes, updates), state, value

    for number in range(steps):
        batch = batches[number % len(batches)]
        changes, state, value = step(changes, state, dict(student), dict(teacher), batch)
        if on_step:
            on_step(float(value))
    return apply_changes(student, changes, offsets)


def apply_changes(
    student: Mapping[str, Any], changes: Mapping[str, Any], offsets: Mapping[str, float]
) -> dict[str, Any]:
    """Return the parameters with changed scales."""
    changed = dict(student)
    for path, change in changes.items():
        leaf = student[path]
        if isinstance(leaf, QuantizedArray):
            changed[path] = leaf.replace(scales=leaf.scales * jnp.exp(change))
        else:
            changed[path] = (offsets[path] + leaf) * (1 + change) - offsets[path]
    return changed
