"""What surgery knows of a network: the declarations of its parameters, the sizes of its axes, and its layers one by one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.model import Plamo2, abstract_params, axes, declarations

Params = Any
"""Tree of parameters, as `plamo2_jax.model.init_params` makes it."""
Flat = dict[tuple[str, ...], Any]
"""A tree by the paths of its leaves."""

# Axes whose channels surgery leaves alone: tokens, taps, channels inside a head, the layers themselves.
FIXED = frozenset({axes.VOCAB, axes.CONV, axes.HEAD_DIM, axes.LAYERS, None})


class SurgeryError(ValueError):
    """A model cannot be made into another; the message names the axis or field, the sizes and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """The declarations of a network's parameters, and what follows from them.

    Attributes:
        config: shape of the network.
        declared: each parameter's declaration, by path.
        shapes: each parameter's shape, by path.
        sizes: of every axis but LAYERS, which each run has of its own.
    """

    config: ModelConfig
    declared: dict[tuple[str, ...], axes.Declaration]
    shapes: dict[tuple[str, ...], tuple[int, ...]]
    sizes: dict[str | None, int]

    @functools.cached_property
    def normed(self) -> frozenset[str]:
        """Axes that an RMS norm runs over: their channels depend on each other through its mean."""
        scales = [declared for declared in self.declared.values() if declared.offset is not None]
        return frozenset(name for scale in scales for name in scale.names if name != axes.LAYERS)

    @functools.cached_property
    def paired(self) -> frozenset[str]:
        """Normed axes that no matrix reads: two channels are multiplied and summed, without a weight."""
        read = {name for d in self.declared.values() if d.offset is None for name in d.reads}
        return self.normed - read

    @functools.cached_property
    def global_axes(self) -> frozenset[str]:
        """Axes that layers share, and whose channels go or stay in all of them together: those of parameters outside the layers."""
        outside = [d for d in self.declared.values() if axes.LAYERS not in d.names]
        return frozenset(name for d in outside for name in d.names) - FIXED

    @functools.cached_property
    def local_axes(self) -> frozenset[str]:
        """Axes that each layer has for itself."""
        return frozenset(name for d in self.declared.values() for name in d.names) - FIXED - self.global_axes


@functools.lru_cache(maxsize=64)
def structure(config: ModelConfig) -> Structure:
    """The structure of a network of this shape. Nothing is computed: shapes only."""
    model = Plamo2(config)
    declared = flax.traverse_util.flatten_dict(declarations(model))
    shapes = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(abstract_params(model)).items()}
    sizes: dict[str | None, int] = {}
    for path, d in declared.items():
        sizes.update({name: size for name, size in zip(d.names, shapes[path], strict=True) if name != axes.LAYERS})
    return Structure(config, declared, shapes, sizes)


def flatten(params: Params) -> Flat:
    """A tree by the paths of its leaves."""
    return flax.traverse_util.flatten_dict(params)


def unflatten(flat: Flat) -> Params:
    """The tree of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat)


def map_declared(function: Callable[..., Any], config: ModelConfig, *trees: Params) -> Params:
    """`function(declaration, *leaves)` for every parameter of trees of this shape."""
    declared, flats = structure(config).declared, [flatten(tree) for tree in trees]
    return unflatten({path: function(d, *(flat[path] for flat in flats)) for path, d in declared.items()})


def layer_places(config: ModelConfig) -> list[tuple[str, str, int]]:
    """Where each layer's parameters are: the keys of its run and of its position in the period, and its index on the axis `layers`."""
    places: dict[int, tuple[str, str, int]] = {}
    for r, run in enumerate(config.runs):
        for position in range(len(run.kinds)):
            for period in range(run.count):
                places[run.layer_index(period, position)] = (f"run_{r}", f"layer_{position}", period)
    return [places[layer] for layer in range(config.num_hidden_layers)]


def unstack(params: Params, config: ModelConfig) -> list[Params]:
    """The layers' parameters one by one, without the axis `layers`."""
    return [
        jax.tree.map(lambda leaf, period=period: leaf[period], params[run][position])
        for run, position, period in layer_places(config)
    ]


def restack(outside: Params, layers: Sequence[Params], config: ModelConfig) -> Params:
    """The tree of a network from the parameters outside its layers and its layers one by one."""
    stacks: dict[tuple[str, str], list[Params]] = {}
    for (run, position, _), layer in zip(layer_places(config), layers, strict=True):
        stacks.setdefault((run, position), []).append(layer)
    tree = {key: value for key, value in outside.items() if not key.startswith("run_")}
    for (run, position), stack in stacks.items():
        tree.setdefault(run, {})[position] = jax.tree.map(lambda *leaves: array_module(*leaves).stack(leaves), *stack)
    return tree


def array_module(*leaves: Any) -> Any:
    """NumPy where all leaves are NumPy's: then surgery works in the host's memory and compiles nothing; else jax.numpy."""
    return np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp


def is_attention(kind: LayerKind) -> bool:
    """Whether a layer is of attention, be it windowed or not: both have the same parameters."""
    return kind is not LayerKind.MAMBA


def describe_kinds(config: ModelConfig) -> str:
    """The layers' kinds as a word, such as MAMA (mamba, attention)."""
    return "".join("A" if is_attention(kind) else "M" for kind in config.layer_kinds)
