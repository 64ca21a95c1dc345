"""Code shared by growing and pruning: parameter declarations, axis sizes, and the parameters of each layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, abstract_params, axes, declarations

Params = Any
"""Parameter tree, as returned by `plamo2_jax.model.init_params`."""

# Axes whose channels growing and pruning do not select: tokens, convolution taps, channels inside a head, layers.
FIXED = frozenset({axes.VOCAB, axes.CONV, axes.HEAD_DIM, axes.LAYERS, None})


class SurgeryError(PlamoError):
    """A model cannot be grown or pruned to a target; the message names the axis or field, the sizes and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """The parameter declarations of a model, and sets of axes derived from them.

    Attributes:
        declared: Declaration of each parameter, by path.
        shapes: Shape of each parameter, by path.
        sizes: Size of every axis except LAYERS, which differs between layer groups.
    """

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
    declared = flatten_dict(declarations(model))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract_params(model)).items()}
    sizes: dict[str | None, int] = {}
    for path, d in declared.items():
        sizes.update({name: size for name, size in zip(d.names, shapes[path], strict=True) if name != axes.LAYERS})
    return Structure(declared, shapes, sizes)


def layer_places(config: ModelConfig) -> list[tuple[str, str, int]]:
    """Return the place of each layer in the parameter tree: layer group key, position key, and index on the axis `layers`."""
    return [
        (f"run_{r}", f"layer_{position}", period)
        for r, run in enumerate(config.layer_groups)
        for period in range(run.count)
        for position in range(len(run.kinds))
    ]


def unstack(params: Params, config: ModelConfig) -> list[Params]:
    """Return the parameters of each layer, without the axis `layers`."""
    return [
        jax.tree.map(lambda leaf, period=period: leaf[period], params[run][position])
        for run, position, period in layer_places(config)
    ]


def restack(outside: Params, layers: Sequence[Params], config: ModelConfig) -> Params:
    """Return the parameter tree of a model, given the parameters outside its layers and the parameters of each layer."""
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


def describe_kinds(config: ModelConfig) -> str:
    """Return the layer kinds as letters, M for Mamba and A for windowed or full attention, for example MAMA."""
    return "".join("M" if kind is LayerKind.MAMBA else "A" for kind in config.layer_kinds)


def require_equal(source: ModelConfig, target: ModelConfig, fields: Sequence[str], operation: str) -> None:
    """Raise SurgeryError if one of the fields, or the period of the layer pattern, differs between two configs."""
    for name in fields:
        if (old := getattr(source, name)) != (new := getattr(target, name)):
            raise SurgeryError(
                f"{name} is {old} and would be {new}: {operation} does not change it. Use the same value"
            )
    if source.period != target.period:
        raise SurgeryError(
            f"the layer pattern {describe_kinds(source)} (mamba_step={source.mamba_step}) differs from the target's pattern, "
            f"{describe_kinds(target)} (mamba_step={target.mamba_step}): both must have the same period"
        )
