"""Masks of the channels of each axis, and of the periods of layers, that a pruned model keeps.

Masks are a dict of dicts, `masks[place][axis]`; True keeps. The places are:

* `""` (EVERYWHERE): axes that all layers share, such as `{"embed": [size]}`.
* `"run_0/layer_1"`, each position of each layer group: its own axes, such as `{"mlp": [layers, size], "heads": ...}`.
* `"run_0"`, each layer group: `{"layers": [periods]}`.

All layers of a kind keep the same number of channels, but each layer chooses its own channels.

`apply_masks` returns parameters of the full shape that compute the same as the model from `cut_params`. So a model can be trained while its
masks change: the train step differentiates `loss(apply_masks(params, masks))`. The gradients equal the gradients of the small model, and
are zero for masked parameters.

RMS norms need a correction, because their mean square runs over all channels, masked ones included. Parameters that produce a normed axis
are multiplied by g with g² = size / kept, and parameters that contract it by 1 / g, as when a model grows by zero channels
(`grow.width`). Then the norm has the same statistics, epsilon included, as in the small model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.structure import Params, structure

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


def apply_masks(params: Params, masks: Masks, config: ModelConfig) -> Params:
    """Return parameters of the full shape that compute the same as the pruned model. Pure and differentiable in `params`.

    Args:
        params: Parameters of the full model. Values of masked channels have no effect.
        masks: Missing places and axes keep everything. All layers must keep the same number of channels of an axis.
        config: Config of the full model.
    """
    normed = structure(config).normed

    def multiply(value: Array, mask: Array, declared: axes.Declaration, axis: str) -> Array:
        mask = jnp.asarray(mask, value.dtype)
        position, reads = declared.names.index(axis), axis in declared.contracts
        if axis not in normed or (declared.norm_offset is not None and not reads):
            return value * mask
        kept = jnp.sum(mask, position, keepdims=True) / mask.shape[position]
        if declared.norm_offset is not None:
            return value * (mask * kept)
        return value * (mask * jnp.sqrt(kept if reads else 1 / kept))

    return _map(params, masks, config, multiply)


def soften(params: Params, masks: Masks, config: ModelConfig) -> Params:
    """Return parameters that multiply the activation of every channel by its mask, a float. Importance is the derivative of the loss by it.

    Along an axis without norm, the contracting parameters are multiplied. Along a normed axis, the producing parameters are multiplied, so
    that the mean square of the norm changes too. A channel that meets itself in a product (the residual stream and a tied embedding, the
    states of B and C) is multiplied once. A period of layers is multiplied at the end of its residual branches. Mask values must not be 0;
    use `apply_masks` to remove channels.
    """
    normed = structure(config).normed

    def multiply(value: Array, mask: Array, declared: axes.Declaration, axis: str) -> Array:
        reads = axis in declared.contracts
        if axis in normed and declared.norm_offset is not None:
            return value / mask if reads else value
        return value * mask if reads is (axis not in normed) else value

    return _map(params, masks, config, multiply)


def _map(params: Params, masks: Masks, config: ModelConfig, multiply: Callable[..., Array]) -> Params:
    """Apply `multiply(parameter, mask, declared, axis)` along each masked axis, and the masks of periods to the ends of their branches."""
    flat = flatten_dict(params)
    for path, declared in structure(config).declared.items():
        offset = declared.norm_offset or 0.0
        value = flat[path] + offset
        for axis, mask in _masks_of(masks, path, declared.names):
            value = multiply(value, mask, declared, axis)
        if declared.ends_residual and axes.LAYERS in masks.get(path[0], {}):
            value = value * jnp.asarray(masks[path[0]][axes.LAYERS], value.dtype)[:, None]
        flat[path] = value - offset
    return unflatten_dict(flat)


def _masks_of(masks: Masks, path: tuple[str, ...], names: axes.Axes) -> Iterator[tuple[str, Array]]:
    """Yield each masked channel axis of a parameter, and its mask in a shape that broadcasts to the parameter."""
    for axis in dict.fromkeys(names):
        for place in (EVERYWHERE, "/".join(path[:2])):
            if axis != axes.LAYERS and axis in masks.get(place, {}):
                yield axis, _broadcast(masks[place][axis], names, axis)


def _broadcast(mask: Array, names: axes.Axes, axis: str) -> Array:
    """Reshape a mask [size] or [layers, size] so that it broadcasts to a parameter."""
    shape = [1] * len(names)
    shape[names.index(axis)] = mask.shape[-1]
    if mask.ndim == 2:
        shape[names.index(axes.LAYERS)] = mask.shape[0]
    return mask.reshape(shape)


def keep_tree(masks: Masks, config: ModelConfig) -> Params:
    """Return a tree of boolean arrays that broadcast to the parameters: True for the entries that the cut model has."""
    kept = {}
    for path, declared in structure(config).declared.items():
        names = declared.names
        kept[path] = np.ones([1] * len(names), bool)
        for _, mask in _masks_of(masks, path, names):
            kept[path] = kept[path] & np.asarray(mask)
        if axes.LAYERS in names and axes.LAYERS in masks.get(path[0], {}):
            kept[path] = kept[path] & _broadcast(np.asarray(masks[path[0]][axes.LAYERS]), names, axes.LAYERS)
    return unflatten_dict(kept)


def mask_state(
    opt_state: optax.OptState, optimizer: optax.GradientTransformation, masks: Masks, config: ModelConfig
) -> optax.OptState:
    """Return the optimizer state with zero moments for masked parameters, so that momentum does not move them."""

    def zero(leaf: Array, kept: np.ndarray) -> Array:
        # The scales of moments in int8 have another shape than the parameter. Zero codes mean zero with any scale.
        fits = leaf.ndim == kept.ndim and all(k in (1, n) for k, n in zip(kept.shape, leaf.shape, strict=True))
        return jnp.where(kept, leaf, 0) if fits else leaf

    return optax.tree.map_params(optimizer, zero, opt_state, keep_tree(masks, config))
