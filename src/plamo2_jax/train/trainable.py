"""The parameters that a run trains, and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.load import load_model
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, init_params, logical_axes
from plamo2_jax.sharding.rules import Strategy, param_shardings


@dataclasses.dataclass(frozen=True)
class Trainable:
    """What an optimizer updates and a checkpoint holds."""

    axes: Any
    """Tree of the names of each parameter's axes."""
    abstract: Any
    """Tree of `jax.ShapeDtypeStruct`, float32."""
    create: Callable[[Any], Any]
    """A tree of shardings → the parameters before the first update, placed so."""


def full_params(model: Plamo2, init_from: Path | None, seed: int) -> Trainable:
    """Return all parameters of a model as trainable.

    Args:
        model: the network.
        init_from: run folder or folder of the public layout; None: random parameters.
        seed: of random parameters.
    """
    # Shapes are traced with a single token, which kernels for TPU need not take.
    plain = Plamo2(model.config)

    def create(shardings: Any) -> Any:
        if init_from is not None:
            return load_params(init_from, model.config, shardings)
        key = jax.random.key(seed)
        return jax.jit(lambda: init_params(model, key), out_shardings=shardings)()

    return Trainable(logical_axes(plain), abstract_params(plain), create)


def load_params(folder: Path, config: ModelConfig, shardings: Any) -> Any:
    """Read the parameters of a folder, which must hold a model of this shape.

    Args:
        folder: run folder or folder of the public layout.
        config: the shape.
        shardings: tree of shardings; None: the first device.

    Raises:
        ValueError: the folder holds a model of another shape, is damaged, or holds no model.
    """
    params = load_model(folder, shardings=shardings).params
    # Fields that change no parameter (a window, a RoPE base) are the configuration's to choose.
    wanted, found = (
        jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (abstract_params(Plamo2(config)), params)
    )
    if wanted != found:
        raise PlamoError(f"{folder} holds a model of another shape than this run's `model`")
    return params


def model_shardings(config: ModelConfig, mesh: Mesh, sharding: Strategy) -> tuple[Any, Any]:
    """Return the shapes of a model's parameters, and their shardings over a mesh."""
    model = Plamo2(config)
    abstract = abstract_params(model)
    return abstract, param_shardings(logical_axes(model), abstract, mesh, sharding)
