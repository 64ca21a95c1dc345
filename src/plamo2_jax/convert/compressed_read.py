"""Reading quantized weights in the compressed-tensors format into `QuantizedArray`s."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.compressed_config import read_groups
from plamo2_jax.convert.compressed_tensors import (
    PACKED,
    SCALE,
    SHAPE,
    WEIGHT,
    ZERO,
    Matrix,
    Scheme,
    is_compressed,
    tensor_shapes,
    unpack,
)
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.files import (
    COMPRESSED_DTYPES,
    CONFIG,
    READ_DTYPES,
    StoredTensor,
    find_tensors,
    read_json,
)
from plamo2_jax.convert.layout import LM_HEAD, Part, PublicTensor, public_tensors
from plamo2_jax.convert.quantized_parts import leaf_from, matrix_shape, period_path
from plamo2_jax.convert.quantized_read import separate
from plamo2_jax.convert.read import Source, common_dtype, read_leaf, with_dtype
from plamo2_jax.model import Plamo2, abstract_params, axes, declarations
from plamo2_jax.model.plamo2 import period_paths
from plamo2_jax.model.quantized import QuantizedArray, contraction_axes

_FLOATS = frozenset(READ_DTYPES.values())


def holds_compressed(folder: Path) -> bool:
    """Return whether a folder in Hugging Face format holds quantized weights. Raise ConvertError if their format is not supported."""
    return is_compressed(read_json(folder, CONFIG))


def require_float(folder: Path) -> None:
    """Raise ConvertError if a folder in Hugging Face format holds quantized weights."""
    if holds_compressed(folder):
        raise ConvertError(
            f"{folder} holds a quantized model: this command needs a float32 or bfloat16 model. Use the model "
            "before quantization"
        )


def read_compressed(folder: Path, config: ModelConfig, abstract: Any = None) -> dict:
    """Read quantized parameters from a folder in Hugging Face format, matrix by matrix.

    Args:
        folder: Folder with config.json and safetensors.
        config: Config of its model.
        abstract: Tree of `jax.ShapeDtypeStruct` of the model's parameters, with or without a scan over layers; None: without a scan, in the
            dtype of the files.

    Returns:
        The parameter tree. It is stacked if `abstract` is and all periods of a layer group have the same formats; otherwise it is the tree
        of a model without a scan over layers.

    Raises:
        ConvertError: A key of quantization_config is not supported, or a tensor is missing, unknown, damaged or of another shape.
    """
    groups = read_groups(read_json(folder, CONFIG), str(folder / CONFIG))
    stored = find_tensors(folder, READ_DTYPES | COMPRESSED_DTYPES)
    schemes: dict[str, Scheme] = {}
    sources: dict[str, list[Source | None]] = {}
    places: dict[str, tuple[PublicTensor, Part, int]] = {}
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {}
    for tensor in public_tensors(config):
        module, scheme = tensor.name.removesuffix(".weight"), None
        if tensor.name.endswith("_proj.weight"):
            scheme = groups.scheme_of(module)
        if scheme is None:
            found = stored.get(tensor.name)
            same = found is not None and found.shape in tensor.other_shapes
            wanted[tensor.name] = None, found.shape if same else tensor.shape
        else:
            shape = matrix_shape(tensor)
            if scheme.group_size and shape[1] % scheme.group_size:
                raise ConvertError(
                    f"{groups.where}: group_size {scheme.group_size} does not divide the {shape[1]} inputs of {module}"
                )
            schemes[tensor.name] = scheme
            wanted |= tensor_shapes(module, scheme, shape)
        start = 0
        for part in tensor.parts:
            plain = scheme is None and tensor.name in stored
            # Periods are found by their place in the list, so quantized ones have an entry too.
            sources.setdefault(part.path, []).append(Source(stored[tensor.name], start, part) if plain else None)
            places[period_path(part)] = tensor, part, start
            start += part.size
    if not schemes:
        raise ConvertError(f"{groups.where} quantizes no matrix of the model: remove it from {CONFIG}")
    _check(folder, config, stored, wanted)
    model = Plamo2(config, scan_layers=False)
    if abstract is None:
        floats = common_dtype(stored[name].dtype for name, (dtype, _) in wanted.items() if dtype is None)
        abstract = with_dtype(abstract_params(model), floats, None)
    declared = flax.traverse_util.flatten_dict(declarations(model), sep="/")
    contracted = {path: contraction_axes(each) for path, each in declared.items() if axes.is_matrix(each.names)}
    if "run_0" in abstract and not _uniform(config, places, schemes):
        abstract = separate(abstract, config)
    cache: dict[str, Matrix] = {}

    def quantized(path: str) -> QuantizedArray:
        tensor, part, start = places[path]
        if tensor.name not in cache:
            cache.clear()
            cache[tensor.name] = _matrix(tensor, schemes[tensor.name], stored)
        return leaf_from(part, start // tensor.shape[1], cache[tensor.name], contracted[path])

    params: dict[str, Any] = {}
    # Parameters of one public matrix are read one after the other.
    leaves = flax.traverse_util.flatten_dict(abstract, sep="/")
    for path in sorted(leaves, key=lambda path: places[period_paths(config, path)[0][0]][0].name):
        paths, stacked = period_paths(config, path)
        if places[paths[0]][0].name not in schemes:
            params[path] = read_leaf(sources, path, leaves[path])
            continue
        periods = [quantized(each) for each in paths]
        whole = jax.tree.map(lambda *each: np.stack(each), *periods) if stacked else periods[0]
        params[path] = jax.device_put(whole, _device(folder, leaves[path]))
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _uniform(
    config: ModelConfig, places: Mapping[str, tuple[PublicTensor, Part, int]], schemes: Mapping[str, Scheme]
) -> bool:
    """Return whether all periods of each layer group have the same schemes, so that they can be stacked."""
    found: dict[str, set[Scheme | None]] = {}
    for tensor, part, _ in places.values():
        found.setdefault(part.path, set()).add(schemes.get(tensor.name))
    return all(len(each) == 1 for each in found.values())


def _device(folder: Path, leaf: jax.ShapeDtypeStruct) -> Any:
    sharding = leaf.sharding
    if sharding is None:
        return jax.local_devices()[0]
    if len(sharding.device_set) > 1:
        raise ConvertError(
            f"{folder} has quantized weights in Hugging Face format, which can be read onto one device only. "
            f"Convert the folder first: plamo2 convert from-hf {folder} RUN"
        )
    return next(iter(sharding.device_set))


def _check(
    folder: Path,
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[Any, tuple[int, ...]]],
) -> None:
    """Check names, dtypes and shapes of all tensors. Nothing reads weight_shape, so it may be absent."""
    optional = {name for name in {*wanted, *stored} if name.endswith(f".{SHAPE}")}
    if config.tie_word_embeddings:
        optional.add(LM_HEAD)
    if missing := [name for name in wanted if name not in stored and name not in optional]:
        raise ConvertError(
            f"{folder} does not have {len(missing)} tensor(s) of the model in {CONFIG}: {missing[0]}, ..."
        )
    if extra := [name for name in stored if name not in wanted and name not in optional]:
        raise ConvertError(
            f"{folder} has {len(extra)} tensor(s) that {CONFIG} does not describe: {extra[0][:200]}, ..."
        )
    names = {dtype: name for name, dtype in (READ_DTYPES | COMPRESSED_DTYPES).items()}
    for name, (dtype, shape) in wanted.items():
        if name not in stored:
            continue
        found = stored[name]
        if found.shape != shape:
            raise ConvertError(f"{found.file}: tensor {name} has shape {list(found.shape)}: it must be {list(shape)}")
        floating = dtype is None or name.endswith(f".{SCALE}")
        if found.dtype not in (_FLOATS if floating else {dtype}):
            allowed = ", ".join(READ_DTYPES) if floating else names[dtype]
            raise ConvertError(f"{found.file}: tensor {name} has dtype {names[found.dtype]}: it must be {allowed}")


def _matrix(tensor: PublicTensor, scheme: Scheme, stored: Mapping[str, StoredTensor]) -> Matrix:
    """Read a quantized matrix and check its values."""
    module, shape = tensor.name.removesuffix(".weight"), matrix_shape(tensor)

    def read(name: str) -> np.ndarray:
        found = stored[f"{module}.{name}"]
        return np.array(found.map(0, found.shape))

    where = f"{stored[f'{module}.{SCALE}'].file}: tensor {module}"
    if f"{module}.{SHAPE}" in stored and tuple(read(SHAPE).tolist()) != shape:
        raise ConvertError(f"{where}.{SHAPE} is {read(SHAPE).tolist()}: it must be {list(shape)}")
    values = unpack(read(PACKED), scheme.bits, shape[1]) if scheme.packed else read(WEIGHT)
    scales = read(SCALE).astype(np.float32)
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ConvertError(f"{where}.{SCALE} holds a scale that is not positive and finite. Quantize the model again")
    if scheme.kind == "float" and not np.isfinite(values.astype(np.float32)).all():
        raise ConvertError(f"{where}.{WEIGHT} holds NaN: float8 values must be from -448 to 448")
    zeros = None if scheme.symmetric else read(ZERO)
    if zeros is not None and scheme.packed:
        zeros = unpack(np.ascontiguousarray(zeros.T), scheme.bits, shape[0]).T
    return Matrix(scheme, values, scales, zeros)
