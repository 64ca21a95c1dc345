"""Which parameters a run trains, and where they come from: the model's own, unless its objective says otherwise."""

from __future__ import annotations

from typing import Any, Protocol

import jax

from plamo2_jax.convert.load import load_params
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, init_params, logical_axes
from plamo2_jax.sharding.rules import with_shardings
from plamo2_jax.train.config import PretrainConfig


class Trained(Protocol):
    """What an optimizer updates and a checkpoint holds."""

    axes: Any
    """Tree of the names of each parameter's axes."""
    abstract: Any
    """Tree of `jax.ShapeDtypeStruct`, float32."""

    def create(self, shardings: Any) -> Any:
        """The parameters before the first update, lying as told."""


class WholeModel:
    """All parameters of the model: from `config.init_from`, or at random."""

    def __init__(self, config: PretrainConfig, model: Plamo2):
        self._config, self._model = config, model
        self.axes, self.abstract = logical_axes(model), abstract_params(model)

    def create(self, shardings: Any) -> Any:
        """See `Trained`."""
        if self._config.init_from is not None:
            abstract = with_shardings(self.abstract, shardings)
            return load_params(self._config.init_from, self._config.model, abstract)
        key = jax.random.key(self._config.seed)
        return jax.jit(lambda: init_params(self._model, key), out_shardings=shardings)()
