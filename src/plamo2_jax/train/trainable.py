"""Trainable parameters of a run, and their initial values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import load_model
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, init_params, logical_axes


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The parameters that the optimizer updates and a checkpoint contains."""

    axes: Any
    """Tree of the axis names of each parameter."""
    abstract: Any
    """Tree of `jax.ShapeDtypeStruct`, float32."""
    create: Callable[[Any], Any]
    """Creates the initial parameters, with the given tree of shardings."""


def full_params(model: Plamo2, init_from: Path | None, seed: int) -> Trainable:
    """Make all parameters of a model trainable.

    Args:
        init_from: Run folder, or folder in Hugging Face format; None: random parameters.
        seed: Random seed of random parameters.
    """

    def create(shardings: Any) -> Any:
        if init_from is not None:
            return load_params(init_from, model.config, shardings)
        return jax.jit(init_params, static_argnums=0, out_shardings=shardings)(model, jax.random.key(seed))

    return Trainable(logical_axes(model), abstract_params(model), create)


def load_params(folder: Path, config: ModelConfig, shardings: Any) -> Any:
    """Load the parameters of a model of a given shape.

    Args:
        folder: Run folder, or folder in Hugging Face format.
        config: Shape of the model.
        shardings: Tree of shardings; None: the first device.

    Raises:
        PlamoError: The folder has no model or a model with a different shape, or is damaged.
    """
    params = load_model(folder, shardings=shardings).params
    # Only shapes must match. Other fields, such as the window or the RoPE base, are those of the configuration.
    wanted, found = (
        jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (abstract_params(Plamo2(config)), params)
    )
    if wanted != found:
        raise PlamoError(
            f"the model in {folder} has a different shape than `model` of this run: all sizes must be the same"
        )
    return params
