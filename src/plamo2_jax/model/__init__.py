"""The PLaMo 2 network as functional Flax Linen modules."""

from plamo2_jax.model.plamo2 import Plamo2, abstract_params, declarations, init_params, logical_axes

__all__ = ["Plamo2", "abstract_params", "declarations", "init_params", "logical_axes"]
