"""How much each channel of each axis matters, measured on calibration data.

Scores have the places and axes of masks (see `masks`), numbers in place of booleans; larger stays. What is measured is found by the
names of axes, so it needs to know no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.layers import OBSERVED
from plamo2_jax.surgery.prune.masks import EVERYWHERE, Masks, apply_masks, full_masks, places, soften
from plamo2_jax.surgery.structure import Params, SurgeryError, flatten, structure

Method = Literal["activation", "taylor", "magnitude", "random"]
"""activation: size of activations (Minitron, arXiv:2407.14679, section 2.2; heads of the scan as in Nemotron-H, arXiv:2504.11409).
taylor: squared first-order change of the loss when a channel is silenced (Molchanov et al. 2019, arXiv:1906.10771).
magnitude: norm of the weights that make and read a channel. random: a seeded draw."""

Scores = dict[str, dict[str, np.ndarray]]
Batch = Mapping[str, Any]
Loss = Callable[[Params, Batch], Array]
"""Mean loss of a batch, a scalar."""


def score(
    method: Method,
    params: Params,
    config: ModelConfig,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    masks: Masks | None = None,
    seed: int = 0,
) -> Scores:
    """Scores of every channel by one method.

    Args:
        method: see `Method`; magnitude and random read no data.
        params: of the network.
        config: its shape.
        batches: with tokens, segment_ids and positions [b, t], and what `loss` reads.
        loss: of parameters and a batch.
        masks: measure the network under these masks; what is masked scores 0.
        seed: of random.

    Raises:
        SurgeryError: no batch where the method reads data.
    """
    masked = params if masks is None else jax.jit(lambda params: apply_masks(params, masks, config))(params)
    if method == "activation":
        scores = activation_scores(masked, config, batches)
    elif method == "taylor":
        scores = taylor_scores(masked, config, batches, loss)
    elif method == "magnitude":
        scores = magnitude_scores(masked, config)
    else:
        rng = np.random.default_rng(seed)
        scores = {
            place: {axis: rng.random(shape) for axis, shape in shapes.items()}
            for place, shapes in places(config).items()
        }
    scores = _share(scores, config)
    for place, shapes in (masks or {}).items():
        for axis, mask in shapes.items():
            scores[place][axis] = np.where(np.asarray(mask), scores[place][axis], 0.0)
    return scores


def _share(scores: Scores, config: ModelConfig) -> Scores:
    """What a group shares matters as much as its members together."""
    sizes = structure(config).sizes
    for shapes in scores.values():
        for shared, member in axes.GROUPS.items():
            if member in shapes and shared in sizes:
                values = shapes[member]
                shapes[shared] = values.reshape(*values.shape[:-1], sizes[shared], -1).sum(-1)
    return scores


def activation_scores(params: Params, config: ModelConfig, batches: Iterable[Batch]) -> Scores:
    """Mean magnitude of each channel over a row's tokens, root of the summed squares over rows (Minitron's mean and L2).

    The stream is seen after the norms that open a layer's branches, summed over layers; the MLP where `down` reads it; heads by the norm
    of what they put out; the state by B · C, a channel's part of the read-out at the token itself; periods of layers by how far they turn
    the stream (block influence, ShortGPT, arXiv:2403.03853).
    """
    model = Plamo2(config)

    @jax.jit
    def observe(params: Params, batch: Batch) -> Any:
        variables, inputs = {"params": params}, (batch["tokens"], batch["segment_ids"], batch["positions"])
        return model.apply(*(variables, *inputs), method="features", mutable=[OBSERVED])[1][OBSERVED]

    squares: Scores = {}
    for batch in batches:
        rows = np.asarray(batch["segment_ids"]).any(1)
        for path, values in flatten(jax.device_get(observe(params, _arrays(batch)))).items():
            axis = path[-1]
            for value in values:  # [layers, b, size]; [layers, b] of the layers' own
                square = np.square(value[:, rows].astype(np.float64)).sum(1)
                place = path[0] if axis == axes.LAYERS else "/".join(path[:2])
                if axis in structure(config).global_axes:
                    place, square = EVERYWHERE, square.sum(0)
                shapes = squares.setdefault(place, {})
                shapes[axis] = shapes.get(axis, 0.0) + square
    if not squares:
        raise SurgeryError("there is no batch to measure activations on; the calibration data are empty")
    return _complete(
        {place: {axis: np.sqrt(v) for axis, v in shapes.items()} for place, shapes in squares.items()}, config
    )


def taylor_scores(params: Params, config: ModelConfig, batches: Iterable[Batch], loss: Loss) -> Scores:
    """Mean over batches of the squared derivative of the loss by each channel's mask, at the mask of ones."""
    ones = jax.tree.map(lambda mask: jnp.ones(mask.shape, jnp.float32), full_masks(config))
    slopes = jax.jit(jax.grad(lambda masks, params, batch: loss(soften(params, masks, config), batch)))
    total, count = None, 0
    for batch in batches:
        square = jax.tree.map(
            lambda leaf: np.square(np.asarray(leaf, np.float64)), slopes(ones, params, _arrays(batch))
        )
        total = square if total is None else jax.tree.map(np.add, total, square)
        count += 1
    if total is None:
        raise SurgeryError("there is no batch to differentiate the loss on; the calibration data are empty")
    return jax.tree.map(lambda leaf: leaf / count, total)


def magnitude_scores(params: Params, config: ModelConfig) -> Scores:
    """Root of the summed squares of all matrices' weights along a channel; of a period of layers, of all its matrices."""
    s, flat = structure(config), flatten(params)
    squares: Scores = {
        place: {axis: np.zeros(shape) for axis, shape in shapes.items()} for place, shapes in places(config).items()
    }
    for path, declared in s.declared.items():
        if not axes.is_matrix(declared.names):
            continue
        square = np.square(np.asarray(flat[path], np.float64))
        for place in (EVERYWHERE, path[0], "/".join(path[:2])):
            for axis in squares.get(place, {}):
                if axis not in declared.names:
                    continue
                kept = (declared.names.index(axis),)
                if place not in (EVERYWHERE, path[0]):
                    kept = (declared.names.index(axes.LAYERS), *kept)
                others = tuple(i for i in range(square.ndim) if i not in kept)
                squares[place][axis] += square.sum(others)
    return jax.tree.map(np.sqrt, squares)


def period_losses(
    params: Params, config: ModelConfig, batches: Iterable[Batch], loss: Loss, masks: Masks | None = None
) -> Scores:
    """How much the loss rises when a period of layers is left out, for each of them: the other way to rank layers.

    It takes as many passes over the batches as there are periods, and one.
    """
    batches = [_arrays(batch) for batch in batches]
    base = full_masks(config) if masks is None else masks
    measure = jax.jit(lambda params, masks, batch: loss(apply_masks(params, masks, config), batch))

    def mean(masks: Masks) -> float:
        return float(np.mean([float(measure(params, masks, batch)) for batch in batches]))

    before, scores = mean(base), {}
    for run in [place for place, shapes in base.items() if axes.LAYERS in shapes]:
        rises = np.zeros(base[run][axes.LAYERS].shape)
        for period in range(len(rises)):
            without = np.array(base[run][axes.LAYERS])
            without[period] = False
            rises[period] = mean({**base, run: {axes.LAYERS: without}}) - before
        scores[run] = {axes.LAYERS: rises}
    return scores


def _complete(scores: Scores, config: ModelConfig) -> Scores:
    """Scores of all places and axes; those that nothing was observed of are 0 (what groups share follows from their members)."""
    return {
        place: {axis: scores.get(place, {}).get(axis, np.zeros(shape)) for axis, shape in shapes.items()}
        for place, shapes in places(config).items()
    }


def _arrays(batch: Batch) -> dict[str, Array]:
    return {name: jnp.asarray(value) for name, value in batch.items()}
