"""Cutting a model: keep the channels and layers of every parameter that the masks keep, selected by axis names."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.prune.masks import EVERYWHERE, Masks, full_masks
from plamo2_jax.surgery.structure import (
    FIXED,
    Params,
    SurgeryError,
    array_module,
    describe_kinds,
    layer_places,
    require_equal,
    restack,
    structure,
    unstack,
)


def check_target(source: ModelConfig, target: ModelConfig, multiple_of: int | None = None) -> None:
    """Check that the target can be cut out of the source.

    Args:
        multiple_of: New sizes of embed, mlp and dt_rank must be multiples of this (a TPU tile has 128 lanes).

    Raises:
        SurgeryError: The target cannot be cut out of the source. The message names the axis or field, both sizes and what is allowed.
    """
    fixed = ("tie_word_embeddings", "rms_norm_eps", "vocab_size", "hidden_size_per_head", "mamba_d_conv")
    require_equal(source, target, fixed, "pruning")
    old, new, step = source.num_hidden_layers, target.num_hidden_layers, source.period
    if new > old:
        raise SurgeryError(f"num_hidden_layers is {old} and would be {new}: pruning cannot add layers. Use plamo2 grow")
    if (old - new) % step:
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}: whole periods are removed, so it must fall by a multiple of {step}"
        )
    rest = old % step
    wanted = describe_kinds(source)[: new - rest] + describe_kinds(source)[old - rest :]
    if describe_kinds(target) != wanted:
        raise SurgeryError(
            f"num_hidden_layers is {old} and would be {new}: the target has the layers {describe_kinds(target)}, but only {wanted} can be "
            f"kept of {describe_kinds(source)}. Keep at least one whole period of {step} layers"
        )
    before, after = structure(source).sizes, structure(target).sizes
    for name in (name for name in before if name in after and name not in FIXED):
        larger, smaller = before[name], after[name]
        if smaller > larger:
            raise SurgeryError(
                f"axis {name!r} has size {larger} and would have {smaller}: the target must not be larger than the source. "
                "Use plamo2 grow"
            )
        lanes = name in {axes.EMBED, axes.MLP, axes.DT_RANK}
        if multiple_of and lanes and smaller != larger and (rest := smaller % multiple_of):
            raise SurgeryError(
                f"axis {name!r} would have size {smaller}: it must be a multiple of {multiple_of}, such as {smaller - rest} or "
                f"{smaller - rest + multiple_of}"
            )
    for shared, member in axes.GROUPS.items():
        if shared in before and shared in after:
            sizes = before[member] // before[shared], after[member] // after[shared]
            if sizes[1] > sizes[0]:
                raise SurgeryError(
                    f"axis {member!r} goes from {before[shared]} groups of {sizes[0]} to {after[shared]} of {sizes[1]}: a group "
                    f"cannot gain members, so {member} must be at most {sizes[0]} · {shared} = {sizes[0] * after[shared]}"
                )


def cut_config(source: ModelConfig, target: ModelConfig, masks: Masks) -> ModelConfig:
    """Return the target config with full attention in the kept layers that had it."""
    kept = _kept_layers(source, masks)
    return dataclasses.replace(
        target, full_attention_idx=tuple(i for i, layer in enumerate(kept) if layer in source.full_attention_idx)
    )


def _kept_layers(source: ModelConfig, masks: Masks) -> list[int]:
    """Return the numbers of the source layers that the masks keep, in order."""
    masks = full_masks(source) | masks
    return [layer for layer, (run, _, period) in enumerate(layer_places(source)) if masks[run][axes.LAYERS][period]]


def cut_params(params: Params, masks: Masks, source: ModelConfig, target: ModelConfig) -> Params:
    """Return the parameters without the masked channels and layers. The small model computes the same function as `apply_masks` gives.

    The function is pure in `params`. Any tree of the same structure can be cut, for example Adam's moments.

    Args:
        masks: Concrete boolean masks. Axes without a mask are kept whole.
        target: Config of the small model, from `cut_config`.

    Raises:
        SurgeryError: The masks do not keep the sizes of the target. The message names the axis and its place in the parameter tree.
    """
    wanted = structure(target).sizes
    masks = {place: {**whole, **masks.get(place, {})} for place, whole in full_masks(source).items()}
    layers = _kept_layers(source, masks)
    if len(layers) != target.num_hidden_layers:
        raise SurgeryError(f"the masks keep {len(layers)} layers, but the target has {target.num_hidden_layers}")
    for place, shapes in masks.items():
        for axis, mask in shapes.items():
            if axis == axes.LAYERS or axis not in wanted:
                continue
            counts = np.asarray(mask).reshape(-1, np.shape(mask)[-1]).sum(-1)
            if set(counts) != {wanted[axis]}:
                raise SurgeryError(
                    f"the masks keep {', '.join(map(str, sorted(set(counts))))} channels of axis {axis!r} in {place or 'all layers'}, "
                    f"but the target has {wanted[axis]}"
                )

    def cut(path: tuple[str, ...], declared: axes.Declaration, leaf: jax.Array) -> jax.Array:
        place = "/".join(path[:2])
        for position, axis in enumerate(declared.names):
            if axis in masks[EVERYWHERE]:
                leaf = leaf.take(np.flatnonzero(masks[EVERYWHERE][axis]), axis=position)
            elif axis not in (None, axes.LAYERS) and axis in masks.get(place, {}):
                mask = np.asarray(masks[place][axis])
                indices = np.stack([np.flatnonzero(row) for row in mask])
                shape = [1] * leaf.ndim
                shape[declared.names.index(axes.LAYERS)], shape[position] = indices.shape
                leaf = array_module(leaf).take_along_axis(leaf, indices.reshape(shape), axis=position)
        return leaf

    flat = flatten_dict(params)
    declared = structure(source).declared
    narrow = unflatten_dict({path: cut(path, each, flat[path]) for path, each in declared.items()})
    old = unstack(narrow, source)
    return restack(narrow, [old[layer] for layer in layers], target)
