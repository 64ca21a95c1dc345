"""The model that post-training starts from: a run folder or a folder of the public layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from plamo2_jax.convert.load import load_model
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.sharding.rules import Strategy, param_shardings
from plamo2_jax.train.trained import WholeModel


class StartingModel(WholeModel):
    """All parameters of the model, from `config.init_from` of either kind, or at random."""

    def create(self, shardings: Any) -> Any:
        """See `train.trained.Trained`.

        Raises:
            ValueError: `init_from` is of another shape, damaged, or no model.
        """
        if self._config.init_from is None:
            return super().create(shardings)
        return load_params(self._config.init_from, self._model, shardings)


def load_params(folder: Path, model: Plamo2, shardings: Any) -> Any:
    """The parameters of a folder, which must be of the model's shape.

    Raises:
        ValueError: it is of another shape, damaged, or no model.
    """
    loaded = load_model(folder, shardings=shardings)
    wanted, found = abstract_params(model), loaded.params
    # Fields that change no parameter (a window, a RoPE base) are the configuration's to choose.
    shapes = [jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{folder} holds a model of another shape than this run's `model`")
    return found


def place_params(folder: Path, model: Plamo2, mesh: jax.sharding.Mesh, sharding: Strategy) -> Any:
    """`load_params`, divided over a mesh as the run divides its own."""
    shardings = param_shardings(logical_axes(model), abstract_params(model), mesh, sharding)
    return load_params(folder, model, shardings)
