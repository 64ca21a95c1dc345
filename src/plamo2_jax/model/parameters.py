"""Creation of parameters with their axis names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from plamo2_jax.model import axes


class DeclaredParameter(nn.LogicallyPartitioned):
    """A Flax box that holds a parameter and its `axes.Declaration`."""

    declared: axes.Declaration | None = struct.field(default=None, pytree_node=False)
    """The declaration without the axis that a scan adds."""

    @property
    def declaration(self) -> axes.Declaration:
        """The declaration, including the axis that a scan added."""
        return dataclasses.replace(self.declared, names=tuple(self.names))


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., jax.Array],
    sizes: Mapping[str | None, int],
    *,
    contracts: tuple[str, ...] = (),
    norm_offset: float | None = None,
    ends_residual: bool = False,
) -> Any:
    """Declare a float32 parameter and return its value.

    Args:
        module: Module that owns the parameter.
        name: Name of the parameter in the module.
        init: Initializer.
        sizes: Size of each axis by its name, in order.
        contracts, norm_offset, ends_residual: See `axes.Declaration`.

    Returns:
        The value in the parameter tree: an array, or another `linear.Weight` of this shape.

    Raises:
        flax.errors.ScopeParamShapeError: The value has another shape.
    """
    declared = axes.Declaration(tuple(sizes), contracts, norm_offset, ends_residual)

    def boxed(*args):
        return DeclaredParameter(init(*args), declared.names, declared=declared)

    shape = tuple(sizes.values())
    value = module.get_variable("params", name)
    if value is None or hasattr(value, "dtype") or isinstance(value, nn.meta.AxisMetadata):
        return module.param(name, boxed, shape, jnp.float32)
    # Flax would compare the shapes of the arrays inside a weight with the shape of the parameter.
    if value.shape != shape:
        path = "/".join((*module.path, name))
        raise flax.errors.ScopeParamShapeError(name, path, value.shape, shape)
    return value
