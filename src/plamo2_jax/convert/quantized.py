"""Quantized run folders: how a parameter tree with `QuantizedArray` leaves is stored and read back.

A quantized run folder holds::

    config.json                      the key "model" as in every run folder, and the key "quantization" (`Quantization`)
    tokenizer.jsonl, templates       as in every run folder
    quantized/weights.safetensors    the parameters, one set of tensors for each period of a layer group
    quantized/manifest.json          checksum of the weights

A parameter PATH that is not quantized is one tensor of that name. A quantized one is PATH.values, PATH.scales and, if it is asymmetric,
PATH.zero_points, stored as `QuantizedArray` holds them. Two int4 values share a byte along the last axis, the first in the low half.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.traverse_util
import ml_dtypes
import numpy as np

from plamo2_jax import checkpoint, manifest
from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.chunked_io import blocks
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import READ_DTYPES, StoredTensor, inside, read_header
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.plamo2 import abstract_params, declarations, period_leaf
from plamo2_jax.model.quantized import QuantizedArray, contraction_axes, stored_order
from plamo2_jax.model_files import check_tree_inside
from plamo2_jax.storage import new_folder, require_local, write_whole
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.validation import shown

FOLDER, WEIGHTS = "quantized", "weights.safetensors"
VERSION = 1
VALUES, SCALES, ZERO_POINTS = "values", "scales", "zero_points"
Values = Literal["int8", "int4", "float8"]
"""dtypes of quantized values. float8 is float8_e4m3fn."""
_STORED = {"int8": "I8", "int4": "U8", "float8": "F8_E4M3"}
_DTYPES = {
    "int8": np.dtype(np.int8),
    "int4": np.dtype(ml_dtypes.int4),
    "float8": np.dtype(ml_dtypes.float8_e4m3fn),
}
FILE_DTYPES = {
    **READ_DTYPES,
    "I8": _DTYPES["int8"],
    "U8": np.dtype(np.uint8),
    "F8_E4M3": _DTYPES["float8"],
}
"""dtypes in the file, by their names in safetensors. int4 is packed into U8."""
NAMES = {dtype: name for name, dtype in FILE_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Format:
    """How one matrix is quantized."""

    values: Values
    groups: int
    """Number of scales of each output."""
    zero_points: bool = False
    activations: Literal["int8", "float8"] | None = None

    @classmethod
    def of(cls, leaf: QuantizedArray) -> Format:
        """Return the format of a leaf of a parameter tree."""
        kind = next(name for name, dtype in _DTYPES.items() if dtype == leaf.values.dtype)
        return cls(kind, leaf.scales.shape[-1], leaf.zero_points is not None, leaf.activations)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The key "quantization" of config.json."""

    method: str
    """Method that chose the values, for the reader. It does not change how the model is read."""
    tensors: Mapping[str, Format]
    """Format of each quantized matrix, by its path in the model without a scan over layers."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        tensors = {path: dataclasses.asdict(each) for path, each in self.tensors.items()}
        return {"version": VERSION, "method": self.method, "tensors": tensors}


def read_quantization(folder: str | os.PathLike[str]) -> Quantization:
    """Read how the model in a quantized run folder is quantized.

    Raises:
        PlamoError: The folder is not a quantized run folder, or its description has an unknown version or field, or a value that is not
            allowed.
    """
    where = f'{Path(folder) / checkpoint.CONFIG}, "quantization"'
    found = checkpoint.read_config(folder).get("quantization")
    if not isinstance(found, dict):
        raise ConvertError(f"{where}: it must be an object, as plamo2 quantize writes it")
    if found.get("version") != VERSION:
        raise ConvertError(
            f"{where}: version {shown(found.get('version'))} is not known: it must be {VERSION}. Use a newer version of plamo2-jax, or "
            "quantize the model again"
        )
    method, tensors = found.get("method"), found.get("tensors")
    if not isinstance(method, str) or not isinstance(tensors, dict) or not tensors:
        raise ConvertError(f'{where}: "method" must be text, and "tensors" an object with at least one matrix')
    return Quantization(method, {path: _read_format(f"{where}, {path[:200]}", each) for path, each in tensors.items()})


def _read_format(where: str, found: Any) -> Format:
    fields = {field.name for field in dataclasses.fields(Format)}
    if not isinstance(found, dict) or found.keys() - fields or not {"values", "groups"} <= found.keys():
        raise ConvertError(f"{where}: it must be an object with the keys {', '.join(sorted(fields))}, and no others")
    each = Format(**found)
    if not isinstance(each.values, str) or each.values not in _STORED:
        raise ConvertError(f"{where}: values {shown(each.values)} are not known: they must be int8, int4 or float8")
    if type(each.groups) is not int or each.groups < 1:
        raise ConvertError(f"{where}: groups must be a positive integer, not {shown(each.groups)}")
    if type(each.zero_points) is not bool or (each.zero_points and each.values == "float8"):
        raise ConvertError(f"{where}: zero_points must be true or false, and false for float8")
    if each.activations not in (None, "int8", "float8"):
        raise ConvertError(f"{where}: activations must be int8, float8 or null, not {shown(each.activations)}")
    return each


def save_quantized(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer | None = None,
    *,
    method: str,
    files: Mapping[str, bytes] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a quantized run folder, tensor by tensor. The folder appears complete or not at all.

    Args:
        folder: Folder to create; it must not exist or must be empty.
        params: Tree of arrays and `QuantizedArray`, with or without a scan over layers. All are addressable by this process.
        method: Name of the method that quantized the model.
        files: Further small files by name, such as the chat template.
        about: Further keys for config.json.

    Raises:
        PlamoError: `folder` is not empty or not on this machine, the parameters do not fit the config, or an int4 matrix has an odd
            number of values along its last stored axis.
        OSError: The disk is full. The message names `folder`.
    """
    require_local(folder)
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    shapes = flax.traverse_util.flatten_dict(abstract_params(Plamo2(config, scan_layers=False)), sep="/")
    formats, stored = {}, {}
    for path, wanted in shapes.items():
        leaf = period_leaf(leaves, path)
        if leaf is None or leaf.shape != wanted.shape:
            found = "missing" if leaf is None else f"of shape {leaf.shape}"
            raise ConvertError(f"parameter {path} is {found}: by the config its shape must be {wanted.shape}")
        if isinstance(leaf, QuantizedArray):
            formats[path] = Format.of(leaf)
            if formats[path].values == "int4" and leaf.values.shape[-1] % 2:
                raise ConvertError(f"parameter {path} has an odd number of inputs: int4 needs an even number. Use int8")
        stored |= dict(_stored_tensors(path, wanted.shape, leaf, formats.get(path)))
    # Larger dtypes first, so that every tensor is aligned.
    names = sorted(stored, key=lambda name: -FILE_DTYPES[stored[name][0]].itemsize)
    with new_folder(folder) as partial:
        quantization = Quantization(method, formats).to_json()
        checkpoint.write_json(
            partial / checkpoint.CONFIG, {"model": config.to_json(), "quantization": quantization, **(about or {})}
        )
        if tokenizer is not None:
            tokenizer.save(partial / checkpoint.TOKENIZER)
        for name, content in (files or {}).items():
            write_whole(partial / name, content)
        (partial / FOLDER).mkdir()
        with (partial / FOLDER / WEIGHTS).open("wb") as file:
            file.write(file_header({name: stored[name] for name in names}))
            for name in names:
                array = _content(name, leaves, shapes)
                for rows in blocks(array):
                    file.write(np.ascontiguousarray(array[rows]).reshape(-1).view(np.uint8).data)
        manifest.write_manifest(partial / FOLDER, [WEIGHTS])
        manifest.write_manifest(partial, sorted(path.name for path in partial.iterdir() if path.is_file()))


def _stored_tensors(
    path: str, shape: tuple[int, ...], leaf: Any, form: Format | None
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yield the name, the dtype's name and the shape of the tensors of a parameter."""
    if form is None:
        yield path, (NAMES[np.dtype(leaf.dtype)], shape)
        return
    for name, (dtype, wanted) in _quantized_tensors(shape, leaf.contracted, form).items():
        yield f"{path}.{name}", (dtype, wanted)


def _quantized_tensors(
    shape: tuple[int, ...], contracted: tuple[int, ...], form: Format
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype's name and the shape of the stored tensors of a quantized matrix, by their last name."""
    order = stored_order(len(shape), contracted)
    values = [shape[i] for i in order]
    if form.values == "int4":
        values[-1] //= 2
    grouped = (*(shape[i] for i in order[: len(shape) - len(contracted)]), form.groups)
    tensors = {VALUES: (_STORED[form.values], tuple(values)), SCALES: ("F32", grouped)}
    return tensors | ({ZERO_POINTS: ("I8", grouped)} if form.zero_points else {})


def _content(name: str, leaves: Mapping[str, Any], shapes: Mapping[str, Any]) -> np.ndarray:
    path, _, part = (name, "", "") if name in shapes else name.rpartition(".")
    leaf = period_leaf(leaves, path)
    if not part:
        return np.atleast_1d(np.asarray(leaf))
    array = np.asarray(getattr(leaf, part))
    if part == SCALES:
        return array.astype(np.float32)
    if part == ZERO_POINTS:
        return array.astype(np.int8)
    return pack(array) if array.dtype == ml_dtypes.int4 else array


def pack(values: np.ndarray) -> np.ndarray:
    """Pack int4 values [..., n] into bytes [..., n / 2]: the first of two in the low half."""
    nibbles = values.astype(np.int8).view(np.uint8) & 15
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4


def unpack(packed: np.ndarray) -> np.ndarray:
    """Return the int4 values [..., n] in bytes [..., n / 2]."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((nibbles ^ 8).view(np.int8) - np.int8(8)).astype(ml_dtypes.int4)


def file_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Return the header of a safetensors file with these tensors, given as dtype and shape, in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "plamo2-jax quantized"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * FILE_DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@dataclasses.dataclass(frozen=True)
class QuantizedFile:
    """The checked description of a quantized run folder's weights. No weight has been read."""

    quantization: Quantization
    tensors: Mapping[str, StoredTensor]
    contracted: Mapping[str, tuple[int, ...]]
    """Contraction axes of each matrix, by path."""

    def is_uniform(self, config: ModelConfig) -> bool:
        """Return whether all periods of each layer group have the same formats, so that they can be stacked."""
        formats = self.quantization.tensors
        for i, group in enumerate(config.layer_groups):
            periods = [
                {path.removeprefix(prefix): formats.get(path) for path in self.contracted if path.startswith(prefix)}
                for prefix in (f"run_{i}_period_{j}/" for j in range(group.count))
            ]
            if any(period != periods[0] for period in periods):
                return False
        return True


def float_dtypes(folder: Path) -> set[np.dtype]:
    """Return the dtypes of the parameters of a quantized run folder that are not quantized.

    Raises:
        PlamoError: The file of the weights is missing, damaged or outside the folder.
    """
    stored = read_header(inside(folder / FOLDER, WEIGHTS), FILE_DTYPES)
    # A part of a quantized matrix has a name like PATH.values.
    return {tensor.dtype for name, tensor in stored.items() if "." not in name}


def open_quantized(folder: Path, config: ModelConfig) -> QuantizedFile:
    """Check the files of a quantized run folder: the formats, and the names, dtypes and shapes of all tensors.

    Raises:
        PlamoError: A file is missing, damaged or outside the folder, or a tensor does not fit the model or its format. The message
            names it.
    """
    quantization = read_quantization(folder)
    if not (folder / FOLDER).is_dir():
        raise ConvertError(f"{folder} has no folder {FOLDER}: a quantized model has its weights there")
    check_tree_inside(folder, folder / FOLDER, error=ConvertError)
    path = inside(folder / FOLDER, WEIGHTS)
    checkpoint.verify_files(folder / FOLDER)
    stored = read_header(path, FILE_DTYPES)
    model = Plamo2(config, scan_layers=False)
    declared = flax.traverse_util.flatten_dict(declarations(model), sep="/")
    shapes = flax.traverse_util.flatten_dict(abstract_params(model), sep="/")
    contracted = {name: contraction_axes(each) for name, each in declared.items() if axes.is_matrix(each.names)}
    wanted: dict[str, tuple[str | None, tuple[int, ...]]] = {}
    for name, form in quantization.tensors.items():
        where = f'{folder / checkpoint.CONFIG}, "quantization", {name[:200]}'
        if name not in contracted:
            raise ConvertError(f"{where}: the model has no such matrix. Quantize the model again")
        inputs = math.prod(shapes[name].shape[i] for i in contracted[name])
        if inputs % form.groups:
            raise ConvertError(f"{where}: {form.groups} groups do not divide the {inputs} inputs of the matrix")
        for part, each in _quantized_tensors(shapes[name].shape, contracted[name], form).items():
            wanted[f"{name}.{part}"] = each
    wanted |= {name: (None, leaf.shape) for name, leaf in shapes.items() if name not in quantization.tensors}
    if different := sorted(wanted.keys() ^ stored.keys()):
        raise ConvertError(f"{path} does not fit {checkpoint.CONFIG}: only one of the two has {different[0][:200]}")
    for name, (dtype, shape) in wanted.items():
        found = stored[name]
        if found.shape != shape:
            raise ConvertError(f"{path}: tensor {name} has shape {list(found.shape)}: it must be {list(shape)}")
        allowed = READ_DTYPES.keys() if dtype is None else (dtype,)
        if NAMES[found.dtype] not in allowed:
            raise ConvertError(
                f"{path}: tensor {name} has dtype {NAMES[found.dtype]}: it must be {' or '.join(allowed)}"
            )
    return QuantizedFile(quantization, stored, contracted)
