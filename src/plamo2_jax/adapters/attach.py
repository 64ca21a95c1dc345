"""Parameters of adapters, attached to a model's parameters or merged into them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.targets import A, B, Split, find_targets
from plamo2_jax.config import ModelConfig
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.model.low_rank import LowRank


class Adapters:
    """The adapters of a model as trainable parameters.

    Attributes:
        targets: the adapted parameters, by path.
        abstract: tree of `jax.ShapeDtypeStruct`, float32: `lora_a` and `lora_b` below the path of each target.
        axes: tree of axis names, like `abstract`.
    """

    def __init__(self, config: ModelConfig, lora: LoraConfig, seed: int = 0):
        self.config, self.lora, self._seed = config, lora, seed
        self.targets = find_targets(config, lora)
        shapes = flax.traverse_util.flatten_dict(abstract_params(Plamo2(config)), sep="/")
        abstract, axes = {}, {}
        for path, split in self.targets.items():
            for factor, (shape, names) in split.factors(shapes[path].shape, lora.rank).items():
                abstract[f"{path}/{factor}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
                axes[f"{path}/{factor}"] = names
        self.abstract = flax.traverse_util.unflatten_dict(abstract, sep="/")
        self.axes = flax.traverse_util.unflatten_dict(axes, sep="/")

    def create(self, shardings: Any) -> Any:
        """Return initial adapters: A uniform with variance 1 / (3 in), like PyTorch's linear layers, and B zero.

        Args:
            shardings: tree of shardings like `abstract`; None: the default device.
        """

        def init(key: jax.Array) -> Any:
            leaves = flax.traverse_util.flatten_dict(self.abstract, sep="/")
            made = {}
            for number, (path, leaf) in enumerate(sorted(leaves.items())):
                if path.endswith(B):
                    made[path] = jnp.zeros(leaf.shape, leaf.dtype)
                    continue
                split = self.targets[path.rsplit("/", 1)[0]]
                bound = 1 / math.sqrt(math.prod(leaf.shape[split.stacked : -1]))
                draw = jax.random.fold_in(key, number)
                made[path] = jax.random.uniform(draw, leaf.shape, leaf.dtype, -bound, bound)
            return flax.traverse_util.unflatten_dict(made, sep="/")

        return jax.jit(init, out_shardings=shardings)(jax.random.key(self._seed))

    def attach(self, params: Any, adapters: Any, rng: jax.Array | None = None) -> Any:
        """Return the model's parameters with a `LowRank` at each target. `rng` is the key of the dropout; None: no dropout."""
        leaves = flax.traverse_util.flatten_dict(params, sep="/")
        factors = flax.traverse_util.flatten_dict(adapters, sep="/")
        rng = rng if self.lora.dropout else None
        for number, (path, split) in enumerate(sorted(self.targets.items())):
            w, a, b = leaves[path], factors[f"{path}/{A}"], factors[f"{path}/{B}"]
            key = None if rng is None else jax.random.fold_in(rng, number)
            if key is not None and split.stacked:
                key = jax.random.split(key, w.shape[0])
            leaves[path] = LowRank(w, a, b, key, split.contracted, self.lora.scale, self.lora.dropout)
        return flax.traverse_util.unflatten_dict(leaves, sep="/")

    def merge(self, params: Any, adapters: Any) -> Any:
        """Return the model's parameters with these adapters merged into them."""
        return merge(params, adapters, self.targets, self.lora.scale)


def merge(
    params: dict, adapters: Any, targets: Mapping[str, Split], scale: float, *, consume: bool = False
) -> dict[str, Any]:
    """Return W + scale · A B for each target, computed in float32, in the dtype of W, and the other parameters unchanged.

    Args:
        params: the model's parameters.
        adapters: tree of `lora_a` and `lora_b` below the paths of the targets.
        targets: the adapted parameters, by path.
        scale: factor of A B.
        consume: empty `params`, so that each parameter is freed as soon as it is merged.
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    if consume:
        params.clear()
    factors = flax.traverse_util.flatten_dict(adapters, sep="/")
    for path, split in targets.items():
        a, b, w = factors[f"{path}/{A}"], factors[f"{path}/{B}"], leaves.pop(path)
        leaves[path] = _merged(w, a, b, scale, split.product_spec())
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


@functools.partial(jax.jit, static_argnames="spec")
def _merged(w: jax.Array, a: jax.Array, b: jax.Array, scale: float, spec: str) -> jax.Array:
    product = jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
    return (w + scale * product).astype(w.dtype)
