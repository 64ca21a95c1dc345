"""Selection of the channels with the best scores of each axis."""

from __future__ import annotations

import jax
import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.prune.importance import Scores
from plamo2_jax.surgery.prune.masks import Masks, full_masks
from plamo2_jax.surgery.structure import structure


def select_masks(scores: Scores, source: ModelConfig, target: ModelConfig, masks: Masks | None = None) -> Masks:
    """Return masks that keep the channels with the highest scores.

    Each layer selects its own channels. For grouped axes (key/value heads with their query heads), whole groups are removed first, then
    the same number of members from each remaining group. Periods are compared across all layer groups; a shorter last period always
    stays.

    Args:
        scores: Scores from `importance.score`.
        source: Config of the scored model.
        target: Config with the sizes to keep. If a size is larger than the number of channels that `masks` keep, nothing is removed.
        masks: Masks of an earlier round; masked channels stay masked.
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
    """Return masks of the target's sizes that keep the first channels of each axis, for dry runs on shapes."""
    zeros = jax.tree.map(lambda mask: np.zeros(mask.shape), full_masks(source))
    return select_masks(zeros, source, target)


def _best(scores: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
    """Return a mask of the `count` highest scores along the last axis where `alive`; of equal scores, the first."""
    order = np.argsort(np.where(alive, -scores, np.inf), axis=-1, kind="stable")
    chosen = np.zeros(alive.shape, bool)
    np.put_along_axis(chosen, order[..., :count], True, axis=-1)
    return chosen & alive


def _select_periods(masks: Masks, scores: Scores, source: ModelConfig, target: ModelConfig) -> None:
    candidates = [
        (scores[f"run_{r}"][axes.LAYERS][i], r, i)
        for r, run in enumerate(source.layer_groups)
        if len(run.kinds) == source.period
        for i in range(run.count)
        if masks[f"run_{r}"][axes.LAYERS][i]
    ]
    surplus = len(candidates) - target.num_hidden_layers // source.period
    for run in {r for _, r, _ in candidates}:
        masks[f"run_{run}"][axes.LAYERS] = np.array(masks[f"run_{run}"][axes.LAYERS])
    for _, run, period in sorted(candidates)[: max(surplus, 0)]:
        masks[f"run_{run}"][axes.LAYERS][period] = False
