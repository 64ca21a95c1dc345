"""Parameters in the order in which they are read, as rows of the tensors of a GGUF file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import blocks
from plamo2_jax.convert.files import check_tensors, find_tensors
from plamo2_jax.convert.gguf_blocks import float_rows, integer_rows
from plamo2_jax.convert.gguf_layout import GgufTensor, has_blocks
from plamo2_jax.convert.layout import Part
from plamo2_jax.convert.names import ModelName
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.model.plamo2 import stacked_path
from plamo2_jax.model.quantized import QuantizedArray, is_quantized, stored_order


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive rows of a tensor.

    Attributes:
        tensor: The tensor.
        start: Bytes of the rows before, in the file.
        part: The part of the public tensor that these rows hold.
        values: One period of the parameter: an array in the axis order of `part.view`, or a `QuantizedArray` in our axis order.
    """

    tensor: GgufTensor
    start: int
    part: Part
    values: np.ndarray | QuantizedArray

    def encoded(self) -> Iterator[np.ndarray]:
        """Yield the bytes of the rows in the type of the tensor, in blocks of bounded size.

        Raises:
            ConvertError: A value is NaN, infinite or too large for the type.
        """
        if not is_quantized(self.values):
            yield from self._encoded_floats(self.values)
        elif self.tensor.type in ("Q8_0", "Q4_0") and has_blocks(self.values):
            yield from self._encoded_integers(self.values)
        else:
            yield from self._encoded_floats(np.asarray(self.values.dequantize()).transpose(self.part.inverse))

    def _encoded_floats(self, public: np.ndarray) -> Iterator[np.ndarray]:
        for rows in blocks(public):
            with np.errstate(invalid="ignore"):  # `float_rows` reports NaN.
                values = self.tensor.stored(np.ascontiguousarray(public[rows], np.float32))
            # A block of a vector may be shorter than the vector.
            values = values.reshape(-1, self.tensor.shape[-1] if len(self.tensor.shape) > 1 else values.size)
            yield float_rows(values, self.tensor.type, self.tensor.name)

    def _encoded_integers(self, matrix: QuantizedArray) -> Iterator[np.ndarray]:
        ndim, count = matrix.values.ndim, len(matrix.contracted)
        public = [self.part.order[axis] for axis in stored_order(ndim, matrix.contracted)]
        # Rows of public matrices are outputs, and their columns are the inputs in our order: only rows change places.
        assert public[-count:] == list(range(ndim - count, ndim))
        values = np.asarray(matrix.values).transpose(np.argsort(public))
        scales = np.asarray(matrix.scales).transpose([*np.argsort(public[:-count]), ndim - count])
        for rows in blocks(values):
            integers = np.ascontiguousarray(values[rows]).astype(np.int8).reshape(-1, self.tensor.shape[-1])
            of_rows = np.asarray(scales[rows], np.float32).reshape(len(integers), -1)
            yield integer_rows(integers, of_rows, self.tensor.type, self.tensor.name)


def pieces_of_leaves(leaves: Iterable[tuple[str, Any]], tensors: list[GgufTensor]) -> Iterator[Piece]:
    """Yield the pieces of parameters, given by path, with or without stacked layers."""
    places: dict[str, list[tuple[GgufTensor, int, Part]]] = {}
    for tensor in tensors:
        for part, start in tensor.parts():
            places.setdefault(part.path, []).append((tensor, start, part))
    for path, leaf in leaves:
        stacked, period = stacked_path(path)
        array = leaf if is_quantized(leaf) else np.asarray(leaf)  # no copy on CPU
        for tensor, start, part in places[stacked]:
            if period not in (None, part.period):
                continue
            values = array if part.period == period else array[part.period]
            yield Piece(tensor, start, part, values if is_quantized(leaf) else values.transpose(part.inverse))


def leaves_of_run(name: ModelName, config: ModelConfig) -> Iterator[tuple[str, jax.Array]]:
    """Yield the parameters of a run folder by path, one at a time, in the dtypes of the checkpoint.

    Raises:
        PlamoError: The checkpoint does not exist, is incomplete or damaged, or has other tensors.
    """
    item = checkpoint.EMA if name.ema else checkpoint.PARAMS
    checkpoint.check_size(name.folder, config, name.step, item)
    shapes = abstract_params(Plamo2(config))
    stored = checkpoint.check_params(name.folder, shapes, name.step, item)
    abstract = jax.tree.map(lambda leaf, found: jax.ShapeDtypeStruct(leaf.shape, found.dtype), shapes, stored)
    yield from checkpoint.restore_each(name.folder, abstract, name.step, item)


def pieces_of_public(folder: Path, config: ModelConfig, tensors: list[GgufTensor]) -> Iterator[Piece]:
    """Yield the pieces of a folder in Hugging Face format, each mapped into memory.

    Raises:
        ConvertError: A file is missing or damaged, or a tensor is missing, unknown or has a wrong shape.
    """
    stored = find_tensors(folder)
    check_tensors(folder, stored, [tensor.public for tensor in tensors], config.tie_word_embeddings)
    for tensor in tensors:
        first = 0
        for part, start in tensor.parts():
            yield Piece(tensor, start, part, stored[tensor.public.name].map(first, part.view))
            first += math.prod(part.view)
