"""The train step: gradients of a loss, accumulated over micro-batches, and the optimizer update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError
from plamo2_jax.train.gather_once import GatherOnce
from plamo2_jax.train.state import TrainState
from plamo2_jax.train.task import PROCESSED, LossFn, Metrics

TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""`(state, batch, frozen) -> (state, metrics)`, where `frozen` are the frozen arrays of the task."""


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    accumulation: int = 1,
    shardings: Any = None,
    ema_decay: float | None = None,
    gather_once: GatherOnce | None = None,
) -> TrainStep:
    """Return a pure train step. Jit it with the first argument donated.

    With `accumulation` = k, the batch is split into k micro-batches, which run one after another. Their gradients are weighted by
    `metrics["weight"]`, so that the result is the gradient of the whole batch, however padding is distributed.

    Args:
        loss_fn: Loss to minimize.
        schedule: Learning rate by update, for the metrics (the optimizer has its own).
        accumulation: Number of micro-batches; it must divide b.
        shardings: Tree of the shardings of the parameters, which the gradients get too; None: XLA decides.
        ema_decay: Decay of the moving average of the parameters; None: no average. Update n uses min(decay, (1 + n) / (10 + n)), so that
            the average soon forgets the random initial values.
        gather_once: How devices share the gradients if each gathers all parameters once per step; None: XLA divides the computation.

    Returns:
        The step. Its metrics are the sums of `loss_fn`, `processed` (number of tokens without padding), `loss` (of the batch), `grad_norm`
        (before clipping), `learning_rate`, and `skipped`: 1 if loss or gradient is not finite. A skipped step increases the number of
        updates, but does not change the parameters and the optimizer state, which includes the optimizer's own update count.
    """

    def gradients(params: Any, batch: Batch, rng: jax.Array, frozen: Any) -> tuple[jax.Array, Metrics, Any]:
        """Return the sums of loss, metrics and gradients over the batch: means times the weight."""
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, rng, frozen)
        if shardings is not None and gather_once is None:
            # Each micro-batch's gradients are summed over devices as shards, so that no device ever holds a whole gradient.
            grads = jax.lax.with_sharding_constraint(grads, shardings)
        weight = metrics["weight"]
        grads = jax.tree.map(lambda grad: grad.astype(jnp.float32) * weight, grads)
        return loss * weight, metrics, grads if gather_once is None else gather_once.after_each(grads)

    def accumulate(params: Any, batch: Batch, rng: jax.Array, frozen: Any) -> tuple[jax.Array, Metrics, Any]:
        def add(total: Any, micro: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(params, *micro, frozen)), None

        micro_batches = jax.tree.map(lambda array: _split(array, accumulation), dict(batch))
        rngs = jax.random.split(rng, accumulation)
        first = jax.eval_shape(gradients, params, jax.tree.map(lambda array: array[0], micro_batches), rngs[0], frozen)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
        return jax.lax.scan(add, zero, (micro_batches, rngs))[0]

    sums = accumulate if accumulation > 1 else gradients
    if gather_once is not None:
        sums = gather_once.divide(sums)

    def step(state: TrainState, batch: Batch, frozen: Any = None) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        loss, metrics, grads = sums(state.params, batch, rng, frozen)
        scale = 1 / jnp.maximum(metrics["weight"], jnp.finfo(jnp.float32).tiny)
        grads = jax.tree.map(lambda grad: grad * scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        loss, grad_norm = loss * scale, optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        metrics = {
            **metrics,
            PROCESSED: jnp.sum(batch["segment_ids"] != 0).astype(jnp.float32),
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "skipped": 1 - finite.astype(jnp.float32),
        }
        params = optax.apply_updates(state.params, updates)
        # A select instead of a branch: it fuses into the update, and all devices always run the same collectives.
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        ema = state.ema
        if ema_decay is not None:
            n = state.step.astype(jnp.float32)
            rate = jnp.where(finite, 1 - jnp.minimum(ema_decay, (1 + n) / (10 + n)), 0.0)
            ema = optax.incremental_update(params, ema, rate)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

    return step


def _split(array: jax.Array, parts: int) -> jax.Array:
    """Reshape [b, ...] to [parts, b / parts, ...].

    Row i goes to part i mod parts. So if the batch is sharded over b, each part has rows of every device, and no data move between devices.
    """
    if array.shape[0] % parts:
        raise PlamoError(f"accumulation={parts} is not allowed: it must divide the batch size {array.shape[0]}")
    return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)
