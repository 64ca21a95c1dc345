"""Masks: which channels of which axis, and which periods of layers, a pruned network keeps, while all of them are still there.

A mask is a tree: `{"embed": [size]}` for each axis that layers share, and for each position of each run, `"run_0/layer_1"`, its own
axes, `{"mlp": [layers, size], "heads": ..., ...}`, and for each run, `"run_0"`, `{"layers": [periods]}`: True keeps. Every layer keeps as
many channels as the others of its kind, but not the same ones.

`apply_masks` makes parameters of the network's full shape that compute exactly what the network cut by `shrink` does. So a network can
be trained under a mask that moves: the train step differentiates `loss(apply_masks(params, masks))`, and the gradients are those of the
small network, zero where it has nothing.

An RMS norm needs care: its mean is over all channels, the silent ones too. What makes a normed axis is therefore louder by g, g² = size /
kept, and what reads it is quieter by as much, as when a network grows by silent channels (see `expansion`): then statistics, epsilon
included, are those of the small network.
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
"""`masks[place][axis]`; the place is EVERYWHERE for axes that layers share."""

EVERYWHERE = ""


def full_masks(config: ModelConfig) -> Masks:
    """Masks that keep everything."""
    return {
        place: {axis: np.ones(shape, bool) for axis, shape in shapes.items()}
        for place, shapes in places(config).items()
    }


def places(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shape of each mask."""
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
    """A mask [size] or [layers, size] shaped to multiply a parameter."""
    shape = [1] * len(names)
    shape[names.index(axis)] = mask.shape[-1]
    if mask.ndim == 2:
        shape[names.index(axes.LAYERS)] = mask.shape[0]
    return mask.reshape(shape)


def apply_masks(params: Params, masks: Masks, config: ModelConfig) -> Params:
    """Parameters of the full shape that compute what the cut network does. Pure and differentiable in `params`.

    Args:
        params: of the full network; what is masked in it is of no consequence.
        masks: see the top of this file; places and axes left out keep all. Every layer must keep as many channels of an axis.
        config: shape of the full network.
    """
    s = structure(config)
    return _map(s, params, lambda path, declared, leaf: _masked(s, masks, path, declared, leaf))


def _masked(s: Structure, masks: Masks, path: tuple[str, ...], declared: axes.Declaration, leaf: Array) -> Array:
    offset = declared.offset or 0.0
    value = leaf + offset
    for axis in dict.fromkeys(declared.names):
        mask = _mask_of(masks, path, axis) if axis is not None else None
        if mask is None or axis == axes.LAYERS:
            continue
        mask = jnp.asarray(mask, leaf.dtype)
        factor = mask
        if axis in s.normed:
            kept = jnp.sum(mask, -1, keepdims=True) / mask.shape[-1]
            reads = axis in declared.reads
            if declared.offset is not None:
                factor = mask * kept if reads else mask
            else:
                factor = mask * jnp.sqrt(kept if reads else 1 / kept)
        value = value * _broadcast(factor, declared.names, axis)
    if declared.closes and axes.LAYERS in masks.get(path[0], {}):
        value = value * jnp.asarray(masks[path[0]][axes.LAYERS], leaf.dtype)[:, None]
    return value - offset


def soften(params: Params, masks: Masks, config: ModelConfig) -> Params:
    """Parameters with every channel's activation multiplied by its mask, a number: what importance is the derivative of.

    An axis without norm is multiplied where it is read. A normed one is multiplied where it is made, so that the norm's mean moves too.
    A channel that is read by another that is made alike (the stream by the rows of the table, C's state by B's) counts once. A period of
    layers is multiplied where its branches end. Numbers may be any but 0, which is what `apply_masks` is for.
    """
    s = structure(config)

    def multiply(path: tuple[str, ...], declared: axes.Declaration, leaf: Array) -> Array:
        offset = declared.offset or 0.0
        value = leaf + offset
        for axis in dict.fromkeys(declared.names):
            mask = _mask_of(masks, path, axis) if axis not in (None, axes.LAYERS) else None
            if mask is None:
                continue
            reads = axis in declared.reads
            if axis in s.normed and declared.offset is not None:
                value = value / _broadcast(mask, declared.names, axis) if reads else value
            elif reads is (axis not in s.normed):
                value = value * _broadcast(mask, declared.names, axis)
        if declared.closes and axes.LAYERS in masks.get(path[0], {}):
            value = value * masks[path[0]][axes.LAYERS][:, None]
        return value - offset

    return _map(s, params, multiply)


def _map(s: Structure, params: Params, function) -> Params:
    flat: Flat = flatten(params)
    return unflatten({path: function(path, declared, flat[path]) for path, declared in s.declared.items()})


def keep_tree(masks: Masks, config: ModelConfig) -> Params:
    """A tree like the parameters of booleans that broadcast to them: True where the cut network has a parameter."""
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
    """An optimizer's state that has forgotten what is masked: its moments are zero there, so that momentum moves nothing that is cut."""
    keep = keep_tree(masks, config)
    return optax.tree.map_params(optimizer, lambda leaf, kept: jnp.where(kept, leaf, 0), opt_state, keep)


def kept(masks: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many channels of each axis a network keeps, and of `layers` how many periods."""
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
    """Masks of one's own to change."""
    return jax.tree.map(np.array, masks)
