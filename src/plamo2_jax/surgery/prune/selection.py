"""From scores to masks: the best channels of each axis, as many as the target has."""

from __future__ import annotations

import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.prune.importance import Scores
from plamo2_jax.surgery.prune.masks import Masks, full_masks, places
from plamo2_jax.surgery.structure import structure


def select_masks(scores: Scores, source: ModelConfig, target: ModelConfig, masks: Masks | None = None) -> Masks:
    """Masks that keep the highest scores.

    Each layer keeps its own channels. Of an axis that comes in groups (key/value heads with their queries) whole groups go first, then as
    many members of each group left. Periods of layers are compared over all runs; a shorter last one always stays.

    Args:
        scores: as `importance.score` gives them.
        source: shape of the network scored.
        target: sizes to keep; sizes above those of `masks` keep what is there.
        masks: what is gone already stays gone.
    """
    masks = full_masks(source) if masks is None else masks
    sizes = structure(target).sizes
    result: Masks = {}
    for place, shapes in masks.items():
        result[place] = dict(shapes)
        for axis, mask in shapes.items():
            if axis == axes.LAYERS or axis in axes.GROUPS.values() or axis not in sizes:
                continue
            chosen = _best(scores[place][axis], np.asarray(mask), sizes[axis])
            result[place][axis] = chosen
            if member := axes.GROUPS.get(axis):
                inside = (*chosen.shape, -1)
                alive = np.asarray(shapes[member]).reshape(inside) & chosen[..., None]
                values = scores[place][member].reshape(inside)
                best = _best(values, alive, sizes[member] // sizes[axis]) & chosen[..., None]
                result[place][member] = best.reshape(np.shape(shapes[member]))
    _select_periods(result, scores, source, target)
    return result


def first_masks(source: ModelConfig, target: ModelConfig) -> Masks:
    """Masks of the right sizes that no score has chosen, for plans on shapes."""
    zeros = {
        place: {axis: np.zeros(shape) for axis, shape in shapes.items()} for place, shapes in places(source).items()
    }
    return select_masks(zeros, source, target)


def _best(scores: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
    """The `count` highest along the last axis among those alive, the first of equals."""
    order = np.argsort(np.where(alive, -scores, np.inf), axis=-1, kind="stable")
    chosen = np.zeros(alive.shape, bool)
    np.put_along_axis(chosen, order[..., :count], True, axis=-1)
    return chosen & alive


def _select_periods(masks: Masks, scores: Scores, source: ModelConfig, target: ModelConfig) -> None:
    step = source.mamba_step if source.mamba_enabled else 1
    candidates = [
        (scores[f"run_{r}"][axes.LAYERS][i], r, i)
        for r, run in enumerate(source.runs)
        if len(run.kinds) == step
        for i in range(run.count)
        if masks[f"run_{r}"][axes.LAYERS][i]
    ]
    surplus = len(candidates) - target.num_hidden_layers // step
    for run in {r for _, r, _ in candidates}:
        masks[f"run_{run}"][axes.LAYERS] = np.array(masks[f"run_{run}"][axes.LAYERS])
    for _, run, period in sorted(candidates)[: max(surplus, 0)]:
        masks[f"run_{run}"][axes.LAYERS][period] = False
