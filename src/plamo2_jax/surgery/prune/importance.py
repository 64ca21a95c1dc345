"""Importance scores of channels and layers, measured on a calibration set.

Scores have the places and axes of masks, with float values; channels with larger scores are kept. Activations and parameters are selected
by axis names, so this module needs no code for particular layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.layers import OBSERVED
from plamo2_jax.surgery.prune.masks import EVERYWHERE, Masks, apply_masks, full_masks, places, soften
from plamo2_jax.surgery.structure import Params, SurgeryError, structure

Method = Literal["activation", "taylor", "magnitude", "random"]
"""How channels are scored.
activation: size of activations (Minitron, arXiv:2407.14679, section 2.2; heads of the scan as in Nemotron-H, arXiv:2504.11409).
taylor: squared first-order change of the loss when a channel is removed (Molchanov et al. 2019, arXiv:1906.10771).
magnitude: norm of the weights that produce and contract a channel.
random: seeded random numbers, for comparison."""

Scores = dict[str, dict[str, np.ndarray]]
Loss = Callable[[Params, Batch], Array]
"""Function of parameters and a batch that returns the mean loss, a scalar."""


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
    """Score every channel and period with one method.

    Args:
        method: Scoring method; magnitude and random read no data.
        batches: Calibration batches with tokens, segment_ids and positions [b, t], and the arrays that `loss` reads.
        loss: Loss function, for taylor.
        masks: Score the model with these masks applied; masked channels get score 0.
        seed: Random seed for method random.

    Raises:
        SurgeryError: There is no batch, but the method reads data.
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
    """Set the score of a shared entry (key/value head) to the sum of the scores of its members (query heads)."""
    sizes = structure(config).sizes
    for shapes in scores.values():
        for shared, member in axes.GROUPS.items():
            if member in shapes and shared in sizes:
                values = shapes[member]
                shapes[shared] = values.reshape(*values.shape[:-1], sizes[shared], -1).sum(-1)
    return scores


def activation_scores(params: Params, config: ModelConfig, batches: Iterable[Batch]) -> Scores:
    """Score by activations: mean magnitude over the tokens of a row, then L2 norm over rows (Minitron's mean and L2).

    The residual stream is measured after the norms at the start of each residual branch, summed over layers. The MLP is measured at the
    input of `down`, a head by the norm of its output, a state channel by B · C (its part of the output at the same token). Periods of
    layers are measured by the angle between their input and output (block influence, ShortGPT, arXiv:2403.03853).

    Raises:
        SurgeryError: There is no batch.
    """
    model = Plamo2(config)

    @jax.jit
    def observe(params: Params, batch: Batch) -> Any:
        inputs = (batch["tokens"], batch["segment_ids"], batch["positions"])
        return model.apply({"params": params}, *inputs, method="features", mutable=[OBSERVED])[1][OBSERVED]

    squares: Scores = {}
    for batch in batches:
        rows = np.asarray(batch["segment_ids"]).any(1)
        for path, values in flatten_dict(jax.device_get(observe(params, _arrays(batch)))).items():
            axis = path[-1]
            for value in values:  # [layers, b, size]; for the axis `layers` itself [layers, b]
                square = np.square(value[:, rows].astype(np.float64)).sum(1)
                place = path[0] if axis == axes.LAYERS else "/".join(path[:2])
                if axis in structure(config).global_axes:
                    place, square = EVERYWHERE, square.sum(0)
                shapes = squares.setdefault(place, {})
                shapes[axis] = shapes.get(axis, 0.0) + square
    if not squares:
        raise SurgeryError(
            "the calibration data hold no batch: activations need at least one. Add data or lower --batch-size"
        )
    # A place or axis without measurement gets score 0. `_share` then sets the scores of shared entries.
    return {
        place: {axis: np.sqrt(squares.get(place, {}).get(axis, zeros)) for axis, zeros in shapes.items()}
        for place, shapes in _zeros(config).items()
    }


def taylor_scores(params: Params, config: ModelConfig, batches: Iterable[Batch], loss: Loss) -> Scores:
    """Score by the squared derivative of the loss with respect to each channel's mask at 1, averaged over batches.

    Raises:
        SurgeryError: There is no batch.
    """
    ones = jax.tree.map(lambda mask: jnp.ones(mask.shape, jnp.float32), full_masks(config))
    slopes = jax.jit(jax.grad(lambda masks, params, batch: loss(soften(params, masks, config), batch)))
    total, count = _zeros(config), 0
    for batch in batches:
        slope = slopes(ones, params, _arrays(batch))
        total = jax.tree.map(lambda total, leaf: total + np.square(np.asarray(leaf, np.float64)), total, slope)
        count += 1
    if count == 0:
        raise SurgeryError(
            "the calibration data hold no batch: taylor needs at least one. Add data or lower --batch-size"
        )
    return jax.tree.map(lambda leaf: leaf / count, total)


def magnitude_scores(params: Params, config: ModelConfig) -> Scores:
    """Score by weights: the L2 norm of all matrix weights of a channel; for a period, of all its matrices."""
    flat, squares = flatten_dict(params), _zeros(config)
    for path, declared in structure(config).declared.items():
        if not axes.is_matrix(declared.names):
            continue
        square = np.square(np.asarray(flat[path], np.float64))
        for place in (EVERYWHERE, path[0], "/".join(path[:2])):
            for axis in squares.get(place, {}).keys() & set(declared.names):
                kept = {axis} if place in (EVERYWHERE, path[0]) else {axes.LAYERS, axis}
                others = tuple(i for i, name in enumerate(declared.names) if name not in kept)
                squares[place][axis] += square.sum(others)
    return jax.tree.map(np.sqrt, squares)


def period_losses(
    params: Params, config: ModelConfig, batches: Iterable[Batch], loss: Loss, masks: Masks | None = None
) -> Scores:
    """Score each period of layers by the rise of the loss without it. This takes one pass over the batches per period, and one more."""
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


def _zeros(config: ModelConfig) -> Scores:
    return jax.tree.map(lambda mask: np.zeros(mask.shape), full_masks(config))


def _arrays(batch: Batch) -> dict[str, Array]:
    return {name: jnp.asarray(value) for name, value in batch.items()}
