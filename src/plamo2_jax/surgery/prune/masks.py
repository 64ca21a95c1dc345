"""Masks: which channels of each axis, and which periods of layers, a pruned model keeps.

Masks are a dict of dicts, `masks[place][axis]`; True keeps. The places are:

* `""` (EVERYWHERE): axes that all layers share, such as `{"embed": [size]}`.
* `"run_0/layer_1"`, each position of each layer group: its own axes, such as `{"mlp": [layers, size], "heads": ...}`.
* `"run_0"`, each layer group: `{"layers": [periods]}`.

All layers of a kind keep the same number of channels, but each layer chooses its own channels.

`apply_masks` returns parameters of the full shape that compute exactly what the model cut by `cut_params` computes. So a model can be
trained while its masks change: the train step differentiates `loss(apply_masks(params, masks))`. The gradients are those of the small
model, and zero for masked parameters.

RMS norms need a correction, because their mean square runs over all channels, masked ones included. Parameters that produce a normed axis
are multiplied by g with g² = size / kept, and parameters that contract it by 1 / g, as when a model grows by zero channels
(`grow.width`). Then the statistics of the norm, epsilon included, are those of the small model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.structure import Flat, Params, Structure, flatten, structure, unflatten

Masks = dict[str, dict[str, Array]]
"""`masks[place][axis]`, boolean or float arrays."""

EVERYWHERE = ""


def full_masks(config: ModelConfig) -> Masks:
    """Return masks that keep everything."""
    return {
        place: {axis: np.ones(shape, bool) for axis, shape in shapes.items()}
        for place, shapes in places(config).items()
    }


def places(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shape of each mask, by place and axis."""
    s = structure(config)
    result: dict[str, dict[str, tuple[int, ...]]] = {
        EVERYWHERE: {name: (s.sizes[name],) for name in sorted(s.global_axes)}
    }
    for path, declared in s.declared.items():
        if axes.LAYERS not in declared.names:
            continue
        periods = s.shapes[path][declared.names.index(axes.LAYERS)]
        result.setdefault(path[0], {})[axes.LAYERS] = (periods,)
        place = result.setdefault("/".join(path[:2]), {})
        place.update({name: (periods, s.sizes[name]) for name in declared.names if name in s.local_axes})
    return result


def _mask_of(masks: Masks, path: tuple[str, ...], axis: str) -> Array | None:
    for place in (EVERYWHERE, "/".join(path[:2])):
        if axis in masks.get(place, {}):
            return masks[place][axis]
    return None


def _broadcast(mask: Array, names: axes.Axes, axis: str) -> Array:
    """Reshape a mask [size] or [layers, size] so that it broadcasts to a parameter."""
    shape = [1] * len(names)
    shape[names.index(axis)] = mask.shape[-1]
    if mask.ndim == 2:
        shape[names.index(axes.LAYERS)] = mask.shape[0]
    return mask.reshape(shape)


def apply_masks(params: Params, masks: Masks, config: ModelConfig) -> Params:
    """Return parameters of the full shape that compute what the cut model computes. Pure and differentiable in `params`.

    Args:
        params: Parameters of the full model. Values of masked channels have no effect.
        masks: Masks; missing places and axes keep everything. All layers must keep the same number of channels of an axis.
        config: Config of the full model.
    """
    s = structure(config)
    return _map(s, params, lambda path, declared, leaf: _masked(s, masks, path, declared, leaf))


def _masked(s: Structure, masks: Masks, path: tuple[str, ...], declared: axes.Declaration, leaf: Array) -> Array:
    offset = declared.norm_offset or 0.0
    value = leaf + offset
    for axis in dict.fromkeys(declared.names):
        mask = _mask_of(masks, path, axis) if axis is not None else None
        if mask is None or axis == axes.LAYERS:
            continue
        mask = jnp.asarray(mask, leaf.dtype)
        factor = mask
        if axis in s.normed:
            kept = jnp.sum(mask, -1, keepdims=True) / mask.shape[-1]
            reads = axis in declared.contracts
            if declared.norm_offset is not None:
                factor = mask * kept if reads else mask
            else:
                factor = mask * jnp.sqrt(kept if reads else 1 / kept)
        value = value * _broadcast(factor, declared.names, axis)
    if declared.ends_residual and axes.LAYERS in masks.get(path[0], {}):
        value = value * jnp.asarray(masks[path[0]][axes.LAYERS], leaf.dtype)[:, None]
    return value - offset


def soften(params: Params, masks: Masks, config: ModelConfig) -> Params:
    """Return parameters that multiply the activation of every channel by its mask, a float. Importance is the derivative of the loss by it.

    Along an axis without norm, the contracting parameters are multiplied. Along a normed axis, the producing parameters are multiplied, so
    that the mean square of the norm changes too. A channel that meets itself in a product (the residual stream and a tied embedding, the
    states of B and C) is multiplied once. A period of layers is multiplied at the end of its residual branches. Mask values must not be 0;
    use `apply_masks` to remove channels.
    """
    s = structure(config)

    def multiply(path: tuple[str, ...], declared: axes.Declaration, leaf: Array) -> Array:
        offset = declared.norm_offset or 0.0
        value = leaf + offset
        for axis in dict.fromkeys(declared.names):
            mask = _mask_of(masks, path, axis) if axis not in (None, axes.LAYERS) else None
            if mask is None:
                continue
            reads = axis in declared.contracts
            if axis in s.normed and declared.norm_offset is not None:
                value = value / _broadcast(mask, declared.names, axis) if reads else value
            elif reads is (axis not in s.normed):
                value = value * _broadcast(mask, declared.names, axis)
        if declared.ends_residual and axes.LAYERS in masks.get(path[0], {}):
            value = value * masks[path[0]][axes.LAYERS][:, None]
        return value - offset

    return _map(s, params, multiply)


def _map(s: Structure, params: Params, function) -> Params:
    flat: Flat = flatten(params)
    return unflatten({path: function(path, declared, flat[path]) for path, declared in s.declared.items()})


def keep_tree(masks: Masks, config: ModelConfig) -> Params:
    """Return a tree of boolean arrays that broadcast to the parameters: True for the entries that the cut model has."""
    s = structure(config)

    def keep(path: tuple[str, ...], declared: axes.Declaration) -> np.ndarray:
        result = np.ones([1] * len(declared.names), bool)
        for axis in dict.fromkeys(declared.names):
            mask = _mask_of(masks, path, axis) if axis not in (None, axes.LAYERS) else None
            if mask is not None:
                result = result & _broadcast(np.asarray(mask), declared.names, axis)
        if axes.LAYERS in declared.names and axes.LAYERS in masks.get(path[0], {}):
            periods = np.asarray(masks[path[0]][axes.LAYERS])
            result = result & periods.reshape(-1, *[1] * (len(declared.names) - 1))
        return result

    return unflatten({path: keep(path, declared) for path, declared in s.declared.items()})


def mask_state(
    opt_state: optax.OptState, optimizer: optax.GradientTransformation, masks: Masks, config: ModelConfig
) -> optax.OptState:
    """Return the optimizer state with zero moments for masked parameters, so that momentum does not move them."""
    keep = keep_tree(masks, config)
    return optax.tree.map_params(optimizer, lambda leaf, kept: jnp.where(kept, leaf, 0), opt_state, keep)


def kept(masks: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of kept channels of each axis; for `layers`, the number of kept periods."""
    counts: dict[str, int] = {}
    for shapes in masks.values():
        for axis, mask in shapes.items():
            mask = np.asarray(mask)
            if axis == axes.LAYERS:
                counts[axis] = counts.get(axis, 0) + int(mask.sum())
            else:
                counts[axis] = int(mask.reshape(-1, mask.shape[-1]).sum(-1).max())
    return counts


def copy(masks: Masks) -> Masks:
    """Return a NumPy copy of the masks."""
    return jax.tree.map(np.array, masks)
