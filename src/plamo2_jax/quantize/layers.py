"""The layers of a model one after another on calibration data: second moments of the inputs of each matrix, and the outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.block import Block
from plamo2_jax.model.cache import make_context
from plamo2_jax.model.linear import INPUTS, lookup
from plamo2_jax.model.plamo2 import declarations, period_name
from plamo2_jax.model.quantized import QuantizedArray


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of the model."""

    index: int
    path: str
    """Path of its parameters in the model without a scan over layers."""
    kind: LayerKind


def layers(config: ModelConfig) -> list[Layer]:
    """Return the layers in order."""
    found = []
    for i, group in enumerate(config.layer_groups):
        for period in range(group.count):
            for position, kind in enumerate(group.kinds):
                path = f"{period_name(f'run_{i}', period)}/layer_{position}"
                found.append(Layer(group.layer_index(period, position), path, kind))
    return found


@dataclasses.dataclass(frozen=True)
class Moments:
    """Statistics of the inputs of a matrix, over all tokens of the calibration data."""

    hessian: jax.Array
    """Mean of x xᵀ, [c, c] float32."""
    magnitude: jax.Array
    """Mean of |x|, [c]."""
    largest: jax.Array
    """Largest |x|, [c]."""


class LayerStream:
    """Runs a model layer by layer over calibration batches, and keeps the residual streams between two layers in host memory.

    Args:
        config: Config of the model.
        batches: Calibration batches.
    """

    def __init__(self, config: ModelConfig, batches: Sequence[Batch]):
        self._model = Plamo2(config, scan_layers=False)
        self._config = config
        self._batches = [{name: batch[name] for name in ("tokens", "segment_ids", "positions")} for batch in batches]
        self._streams: list[np.ndarray] = []
        declared = flax.traverse_util.flatten_dict(declarations(self._model), sep="/")
        self.declared: Mapping[str, axes.Declaration] = declared
        self.tokens = int(sum(np.count_nonzero(batch["segment_ids"]) for batch in self._batches))

    @property
    def batches(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def start(self, embedding: Any) -> None:
        """Compute the streams before the first layer."""
        embed = jax.jit(lambda table, tokens: lookup(table, tokens, self._model.activation_dtype))
        self._streams = [np.asarray(embed(embedding, batch["tokens"])) for batch in self._batches]

    def stages(self, layer: Layer, leaves: Mapping[str, Any]) -> list[list[str]]:
        """Return the paths of a layer's matrices in the order of the data flow. Those of a stage read inputs before any of the later."""

        def stage(path: str) -> tuple[bool, ...]:
            declared = self.declared[path]
            contracts = declared.contracts
            in_order = (axes.EMBED not in contracts, declared.names[-1] == axes.EMBED, axes.DT_RANK in contracts)
            return "/mlp/" in path, *in_order

        wanted = [path for path in leaves if axes.is_matrix(self.declared[path].names)]
        keys = sorted({stage(path) for path in wanted})
        return [[path for path in wanted if stage(path) == key] for key in keys]

    def moments(self, layer: Layer, leaves: Mapping[str, Any], path: str) -> Moments:
        """Return the statistics of the inputs of a matrix of a layer.

        Args:
            layer: The layer.
            leaves: Its parameters, by path.
            path: The matrix.
        """
        params = _tree(layer, leaves)
        names = tuple(path.removeprefix(f"{layer.path}/").split("/"))
        compute = _moments_of(self._config, layer.kind, names)
        total = None
        for batch, stream in zip(self._batches, self._streams, strict=True):
            found = compute(params, stream, batch)
            if total is not None:
                found = (total[0] + found[0], total[1] + found[1], jnp.maximum(total[2], found[2]))
            total = found
        squares, magnitude, largest = total
        return Moments(squares / self.tokens, magnitude / self.tokens, largest)

    def advance(self, layer: Layer, leaves: Mapping[str, Any]) -> None:
        """Replace the streams before a layer by those after it."""
        params = _tree(layer, leaves)
        run = _output_of(self._config, layer.kind)
        for i, batch in enumerate(self._batches):
            self._streams[i] = np.asarray(run(params, self._streams[i], batch))


def effective(leaf: Any) -> Any:
    """Return a quantized matrix as an array if the product does not quantize activations, so that programs do not depend on formats."""
    return leaf.dequantize() if isinstance(leaf, QuantizedArray) and leaf.activations is None else leaf


def _tree(layer: Layer, leaves: Mapping[str, Any]) -> dict:
    flat = {path.removeprefix(f"{layer.path}/"): effective(leaf) for path, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _apply(config: ModelConfig, kind: LayerKind, params: Any, stream: Any, batch: Any, **options: Any) -> Any:
    context = make_context(batch["tokens"], batch["segment_ids"], batch["positions"], None)
    return Block(config, kind, "auto").apply({"params": params}, stream, context, None, **options)


@functools.cache
def _output_of(config: ModelConfig, kind: LayerKind):
    return jax.jit(lambda params, stream, batch: _apply(config, kind, params, stream, batch)[0])


@functools.cache
def _moments_of(config: ModelConfig, kind: LayerKind, names: tuple[str, ...]):
    @jax.jit
    def compute(params: Any, stream: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, recorded = _apply(config, kind, params, stream, batch, mutable=[INPUTS])
        found = recorded[INPUTS]
        for name in names:
            found = found[name]
        real = (batch["segment_ids"] != 0).reshape(-1, 1)
        x = jnp.where(real, found[0].reshape(len(real), -1).astype(jnp.float32), 0)
        squares = jnp.dot(x.T, x, precision="highest")
        return squares, jnp.sum(jnp.abs(x), axis=0), jnp.max(jnp.abs(x), axis=0)

    return compute
