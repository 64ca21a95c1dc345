"""Axis arithmetic shared by growing and pruning: parameter declarations, axis sizes, and the layers one by one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, abstract_params, axes, declarations

Params = Any
"""Parameter tree, as returned by `plamo2_jax.model.init_params`."""
Flat = dict[tuple[str, ...], Any]
"""Flattened tree: leaves by path."""

# Axes whose channels growing and pruning do not select: tokens, convolution taps, channels inside a head, layers.
FIXED = frozenset({axes.VOCAB, axes.CONV, axes.HEAD_DIM, axes.LAYERS, None})


class SurgeryError(PlamoError):
    """A model cannot be grown or pruned to a target; the message names the axis or field, the sizes and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """The parameter declarations of a model and what follows from them.

    Attributes:
        config: Config of the model.
        declared: Declaration of each parameter, by path.
        shapes: Shape of each parameter, by path.
        sizes: Size of every axis except LAYERS, which differs between layer groups.
    """

    config: ModelConfig
    declared: dict[tuple[str, ...], axes.Declaration]
    shapes: dict[tuple[str, ...], tuple[int, ...]]
    sizes: dict[str | None, int]

    @functools.cached_property
    def normed(self) -> frozenset[str]:
        """Axes that an RMS norm runs over. Their channels depend on each other through its mean square."""
        scales = [declared for declared in self.declared.values() if declared.norm_offset is not None]
        return frozenset(name for scale in scales for name in scale.names if name != axes.LAYERS)

    @functools.cached_property
    def paired(self) -> frozenset[str]:
        """Normed axes that no matrix contracts: two activations are multiplied and summed over them without a weight (B and C)."""
        read = {name for d in self.declared.values() if d.norm_offset is None for name in d.contracts}
        return self.normed - read

    @functools.cached_property
    def global_axes(self) -> frozenset[str]:
        """Axes that all layers share (the axes of parameters outside the layers). Their channels are kept or removed in all layers."""
        outside = [d for d in self.declared.values() if axes.LAYERS not in d.names]
        return frozenset(name for d in outside for name in d.names) - FIXED

    @functools.cached_property
    def local_axes(self) -> frozenset[str]:
        """Axes of each layer on its own."""
        return frozenset(name for d in self.declared.values() for name in d.names) - FIXED - self.global_axes


@functools.lru_cache(maxsize=64)
def structure(config: ModelConfig) -> Structure:
    """Return the structure of a model. Only shapes are evaluated, no parameters."""
    model = Plamo2(config)
    declared = flax.traverse_util.flatten_dict(declarations(model))
    shapes = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(abstract_params(model)).items()}
    sizes: dict[str | None, int] = {}
    for path, d in declared.items():
        sizes.update({name: size for name, size in zip(d.names, shapes[path], strict=True) if name != axes.LAYERS})
    return Structure(config, declared, shapes, sizes)


def flatten(params: Params) -> Flat:
    """Return the leaves of a tree by path."""
    return flax.traverse_util.flatten_dict(params)


def unflatten(flat: Flat) -> Params:
    """Return the tree of leaves by path, the inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat)


def layer_places(config: ModelConfig) -> list[tuple[str, str, int]]:
    """Return the place of each layer in the parameter tree: layer group key, position key, and index on the axis `layers`."""
    places: dict[int, tuple[str, str, int]] = {}
    for r, run in enumerate(config.layer_groups):
        for position in range(len(run.kinds)):
            for period in range(run.count):
                places[run.layer_index(period, position)] = (f"run_{r}", f"layer_{position}", period)
    return [places[layer] for layer in range(config.num_hidden_layers)]


def unstack(params: Params, config: ModelConfig) -> list[Params]:
    """Return the parameters of each layer, without the axis `layers`."""
    return [
        jax.tree.map(lambda leaf, period=period: leaf[period], params[run][position])
        for run, position, period in layer_places(config)
    ]


def restack(outside: Params, layers: Sequence[Params], config: ModelConfig) -> Params:
    """Return the parameter tree of a model, given the parameters outside its layers and those of each layer."""
    stacks: dict[tuple[str, str], list[Params]] = {}
    for (run, position, _), layer in zip(layer_places(config), layers, strict=True):
        stacks.setdefault((run, position), []).append(layer)
    tree = {key: value for key, value in outside.items() if not key.startswith("run_")}
    for (run, position), stack in stacks.items():
        tree.setdefault(run, {})[position] = jax.tree.map(lambda *leaves: array_module(*leaves).stack(leaves), *stack)
    return tree


def array_module(*leaves: Any) -> Any:
    """Return numpy if all leaves are NumPy arrays, else jax.numpy. With NumPy, surgery runs in host memory and compiles nothing."""
    return np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp


def is_attention(kind: LayerKind) -> bool:
    """Return whether a layer is an attention layer. Windowed and full attention have the same parameters."""
    return kind is not LayerKind.MAMBA


def describe_kinds(config: ModelConfig) -> str:
    """Return the layer kinds as letters, M for Mamba and A for attention, for example MAMA."""
    return "".join("A" if is_attention(kind) else "M" for kind in config.layer_kinds)
