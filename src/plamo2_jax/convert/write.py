"""Writing parameters to the public layout: safetensors files, one tensor after the other.

The writer of the safetensors library needs all tensors of a file in memory, and a file may be as large as the model. A file consists of a
length, a JSON header and the bytes, so this module computes the header from the shapes and then writes each tensor.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from plamo2_jax.checkpoint import write_json
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import Progress, blocks
from plamo2_jax.convert.compressed_tensors import Scheme, tensor_shapes
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import COMPRESSED_DTYPES, DTYPES, INDEX, SINGLE
from plamo2_jax.convert.layout import Part, PublicTensor, public_tensors
from plamo2_jax.convert.quantized_parts import leaf_of, matrix_of, matrix_shape, scheme_of
from plamo2_jax.convert.read import float_dtype
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.model.quantized import QuantizedArray

_NAMES = {dtype: name for name, dtype in (DTYPES | COMPRESSED_DTYPES).items()}


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write, with its tensors in order."""

    name: str
    tensors: tuple[PublicTensor, ...]

    def bytes(self, dtype: np.dtype) -> int:
        """Bytes of its tensors."""
        return sum(file_bytes(tensor, dtype) for tensor in self.tensors)


def file_bytes(tensor: PublicTensor, dtype: np.dtype) -> int:
    """Return the bytes of a tensor in a file whose other weights have a dtype."""
    return tensor.size * (tensor.dtype or dtype).itemsize


def plan_shards(tensors: Sequence[PublicTensor], dtype: np.dtype, max_shard_bytes: int) -> list[Shard]:
    """Divide tensors, in order, among files of at most `max_shard_bytes`. A larger tensor gets a file of its own."""
    groups: list[list[PublicTensor]] = [[]]
    size = 0
    for tensor in tensors:
        added = file_bytes(tensor, dtype)
        if groups[-1] and size + added > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += added
    # Readers need every tensor at a multiple of its element size: larger dtypes come first.
    groups = [sorted(group, key=lambda tensor: -(tensor.dtype or dtype).itemsize) for group in groups]
    if len(groups) == 1:
        return [Shard(SINGLE, tuple(groups[0]))]
    return [Shard(f"model-{i:05}-of-{len(groups):05}.safetensors", tuple(group)) for i, group in enumerate(groups, 1)]


def write_params(
    folder: Path,
    config: ModelConfig,
    params: Any,
    *,
    dtype: Any,
    max_shard_bytes: int,
    on_write: Progress | None = None,
) -> dict[str, Scheme | None]:
    """Write parameters into an existing folder as model.safetensors, or as shards with model.safetensors.index.json.

    Args:
        folder: Folder to write into.
        params: Parameter tree of NumPy arrays, JAX arrays that are addressable by this process, and `QuantizedArray`, with or without a
            scan over layers. Quantized matrices of layers are written as compressed-tensors; other quantized ones (embedding and head)
            in `dtype`.
        dtype: Dtype of the files, float32 or bfloat16.
        max_shard_bytes: Largest number of tensor bytes in a file, unless a single tensor is larger.
        on_write: Called after each block written with its bytes and the bytes of the whole model.

    Returns:
        How each linear layer is quantized, by its public name without ".weight"; None for a layer that is not.

    Raises:
        ConvertError: The parameters do not fit the config, or the dtype or shard size is not allowed.
    """
    dtype = float_dtype(dtype)
    if max_shard_bytes < 1:
        raise ConvertError(f"max_shard_bytes={max_shard_bytes} is not allowed: it must be at least 1")
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    _check(config, leaves)
    schemes: dict[str, Scheme | None] = {}
    planned: list[PublicTensor] = []
    sources: dict[str, PublicTensor] = {}
    for tensor in public_tensors(config):
        module, scheme = tensor.name.removesuffix(".weight"), scheme_of(tensor, leaves)
        if len(tensor.shape) == 2 and tensor.name.endswith("_proj.weight"):
            schemes[module] = scheme
        files = [tensor]
        if scheme is not None:
            shapes = tensor_shapes(module, scheme, matrix_shape(tensor)).items()
            files = [PublicTensor(name, shape, (), dtype=of_file) for name, (of_file, shape) in shapes]
        planned += files
        sources |= dict.fromkeys((file.name for file in files), tensor)
    shards = plan_shards(planned, dtype, max_shard_bytes)
    total = sum(shard.bytes(dtype) for shard in shards)
    write_index(folder, shards, total)
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.write(header(shard.tensors, dtype))
            for tensor in shard.tensors:
                source = sources[tensor.name]
                if tensor is source:
                    chunks = itertools.chain.from_iterable(
                        _public_blocks(leaf_of(part, leaves), part, dtype) for part in tensor.parts
                    )
                else:
                    module = source.name.removesuffix(".weight")
                    content = matrix_of(source, leaves, schemes[module]).tensors(module)[tensor.name]
                    chunks = iter([np.ascontiguousarray(content)])
                for block in chunks:
                    file.write(block.reshape(-1).view(np.uint8).data)
                    if on_write:
                        on_write(block.nbytes, total)
    return schemes


def write_index(folder: Path, shards: Sequence[Shard], total_bytes: int) -> None:
    """Write model.safetensors.index.json, unless all tensors are in one file."""
    if len(shards) > 1:
        files = dict(sorted((tensor.name, shard.name) for shard in shards for tensor in shard.tensors))
        write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": files})


def header(tensors: Sequence[PublicTensor], dtype: np.dtype) -> bytes:
    """Return the header of a safetensors file with these tensors in this order: length, JSON, padding to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + file_bytes(tensor, dtype)
        name = _NAMES[tensor.dtype or dtype]
        entries[tensor.name] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _public_blocks(leaf: Any, part: Part, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield one period of a parameter in public axis order, in contiguous blocks of rows."""
    # np.asarray makes no copy on CPU.
    public = np.asarray(leaf.dequantize() if isinstance(leaf, QuantizedArray) else leaf).transpose(part.inverse)
    for rows in blocks(public):
        with np.errstate(invalid="ignore"):  # NaN is copied, not an error
            block = np.ascontiguousarray(public[rows].astype(dtype, copy=False))
        yield block


def _check(config: ModelConfig, leaves: dict[str, Any]) -> None:
    scan_layers = any(path.startswith("run_0/") for path in leaves)
    wanted = flax.traverse_util.flatten_dict(abstract_params(Plamo2(config, scan_layers=scan_layers)), sep="/")
    if different := sorted(wanted.keys() ^ leaves.keys()):
        raise ConvertError(f"the parameters do not fit the config: only one of the two has {', '.join(different[:5])}")
    for path, leaf in wanted.items():
        found = leaves[path].shape
        if found != leaf.shape:
            raise ConvertError(f"parameter {path} has shape {found}: by the config it must be {leaf.shape}")
