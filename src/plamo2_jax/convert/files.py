"""The files of a public checkpoint. They are checked before any tensor is read.

The safetensors library checks each header (sizes, overlaps, gaps, file length). Each tensor is then read through its own short-lived memory
map: a map of the whole file would count as resident memory of the size of the model. This module never unpickles, runs no code from the
folder and opens no file outside it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.layout import LM_HEAD, PublicTensor
from plamo2_jax.json_input import parse_json, read_json_object
from plamo2_jax.model_files import file_inside
from plamo2_jax.validation import shown

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Dtypes that can be written."""
READ_DTYPES = {**DTYPES, "F16": np.dtype(np.float16)}
COMPRESSED_DTYPES = {
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
"""Further dtypes in files of quantized weights."""
# Bounds the time to parse a damaged or hostile file. The header of the largest allowed model has 2 MB.
_MAX_HEADER_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor's bytes in a file; `offset` is in bytes."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def map(self, start: int, view: tuple[int, ...]) -> np.ndarray:
        """Map the elements from `start` on into memory, in the shape `view`. The map is released with the array."""
        return np.memmap(self.file, self.dtype, "r", self.offset + start * self.dtype.itemsize, view)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder. Raise ConvertError if `file_inside` refuses the file."""
    return file_inside(folder, name, error=ConvertError)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from a file in a folder. Raise ConvertError if the file is missing, outside the folder or not a JSON object."""
    return read_json_object(inside(folder, name), error=ConvertError)


def find_tensors(folder: Path, dtypes: Mapping[str, np.dtype] = READ_DTYPES) -> dict[str, StoredTensor]:
    """Return the stored tensors of a folder by public name.

    Args:
        folder: Folder with safetensors.
        dtypes: Allowed dtypes, by their names in safetensors.

    Raises:
        ConvertError: The folder has no safetensors, a file is damaged, the index contradicts the files, or a tensor is in two files.
    """
    single, index = folder / SINGLE, folder / INDEX
    if os.path.lexists(single) and os.path.lexists(index):
        raise ConvertError(f"{folder} has both {SINGLE} and {INDEX}. Remove the outdated one")
    if os.path.lexists(index):
        return _sharded(folder, dtypes)
    if os.path.lexists(single):
        return read_header(inside(folder, SINGLE), dtypes)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise ConvertError(
            f"{folder} has only pickled weights ({pickled[0]}): they are refused, because loading a pickle can run code. Convert them to "
            "safetensors"
        )
    raise ConvertError(f"{folder} has neither {SINGLE} nor {INDEX}: a model folder needs one of them")


def check_tensors(folder: Path, stored: dict[str, StoredTensor], wanted: list[PublicTensor], tied: bool) -> None:
    """Raise ConvertError unless a folder holds exactly the tensors of the model, in their shapes. The message names wrong tensors."""
    names = {tensor.name for tensor in wanted}
    if missing := [tensor.name for tensor in wanted if tensor.name not in stored]:
        raise ConvertError(
            f"{folder} does not have {len(missing)} tensor(s) of the model in config.json: {_some(missing)}"
        )
    extra = sorted(name for name in stored if name not in names and not (tied and name == LM_HEAD))
    if extra:
        raise ConvertError(
            f"{folder} has {len(extra)} tensor(s) that the model in config.json does not have: {_some(extra)}"
        )
    for tensor in wanted:
        found = stored[tensor.name]
        if found.shape != tensor.shape and found.shape not in tensor.other_shapes:
            raise ConvertError(
                f"{found.file}: tensor {tensor.name} has shape {list(found.shape)}; config.json requires "
                f"{list(tensor.shape)}"
            )


def _sharded(folder: Path, dtypes: Mapping[str, np.dtype]) -> dict[str, StoredTensor]:
    weight_map = read_json(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConvertError(f'{folder / INDEX} has no object "weight_map"')
    for name, file in weight_map.items():
        if not isinstance(file, str) or len(file) > 255 or len(name) > 255:
            raise ConvertError(
                f"{folder / INDEX}: the file of tensor {shown(name)} must be a file name of at most 255 characters, not {shown(file)}"
            )
    stored: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in read_header(inside(folder, file), dtypes).items():
            if name in stored:
                raise ConvertError(f"{folder}: tensor {name} is in two files, {stored[name].file.name} and {file}")
            if name not in weight_map:
                raise ConvertError(
                    f"{folder / file} has the tensor {name}, which {INDEX} does not list: the index does not "
                    "belong to these files. Download the checkpoint again"
                )
            stored[name] = tensor
    for name, file in weight_map.items():
        if name not in stored:
            raise ConvertError(
                f"{folder / file} does not have the tensor {name}, but {INDEX} lists it there: the checkpoint is "
                "incomplete. Download it again"
            )
        if stored[name].file.name != file:
            raise ConvertError(
                f"{folder}: tensor {name} is in {stored[name].file.name}, but {INDEX} lists it in {file}"
            )
    return stored


def read_header(path: Path, dtypes: Mapping[str, np.dtype] = READ_DTYPES) -> dict[str, StoredTensor]:
    """Return the stored tensors of a safetensors file by name.

    Args:
        path: The file.
        dtypes: Allowed dtypes, by their names in safetensors.

    Raises:
        ConvertError: The file is damaged, or a tensor has another dtype.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            if length > _MAX_HEADER_BYTES and length + 8 <= path.stat().st_size:
                raise ConvertError(
                    f"{path} has a header of {length:,} bytes: at most {_MAX_HEADER_BYTES:,} are allowed"
                )
            with safe_open(path, framework="np"):
                pass
            text = file.read(length)
    except (SafetensorError, OSError) as error:
        raise ConvertError(f"{path} is damaged or not a safetensors file: {str(error)[:200]}") from error
    header = parse_json(text, f"the header of {path}", error=ConvertError)
    header.pop("__metadata__", None)
    stored = {}
    for name, entry in header.items():
        where = f"{path}: tensor {_some([name])}"
        if entry["dtype"] not in dtypes:
            raise ConvertError(f"{where} has dtype {entry['dtype']}: it must be one of {', '.join(dtypes)}")
        dtype, (begin, end) = dtypes[entry["dtype"]], entry["data_offsets"]
        shape = tuple(entry["shape"])
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ConvertError(f"{where} has {end - begin} bytes, which does not fit its shape {list(shape)}")
        stored[name] = StoredTensor(path, 8 + length + begin, shape, dtype)
    return stored


def _some(names: list[str]) -> str:
    labels = [name if len(name) <= 120 else f"{name[:100]}..." for name in names[:3]]
    return ", ".join(labels) + (", ..." if len(names) > 3 else "")
