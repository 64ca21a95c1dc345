"""The format of quantized checkpoints in the Hugging Face world: compressed-tensors 0.17, as vLLM reads it.

A quantized linear layer MODULE has these tensors instead of MODULE.weight [out, in]:

    pack-quantized     weight_packed int32 [out, in · bits / 32], weight_scale [out, groups], weight_shape int64 [2]
    int-quantized      weight int8 [out, in], weight_scale [out, groups]
    float-quantized    weight float8_e4m3fn [out, in], weight_scale [out, groups]
    naive-quantized    as float-quantized, with activations that are not quantized

weight_zero_point exists for asymmetric weights only: packed along its outputs in pack-quantized, int8 [out, groups] otherwise.
weight = (values - zero points) · scales. `quantization_config` in config.json describes the layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np

from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.validation import shown

VERSION = "0.17.0"
QUANTIZATION = "quantization_config"
"""Key of config.json."""
PACKED, WEIGHT, SCALE, SHAPE, ZERO = "weight_packed", "weight", "weight_scale", "weight_shape", "weight_zero_point"
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
"""Known values of `format`. The last one means that layers have different formats."""

# vLLM's loader of older versions permutes every tensor of in_proj, and fails on this one. Nothing in vLLM reads it.
_WITHOUT_SHAPE = "mixer.in_proj"


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a linear layer is quantized."""

    kind: Literal["int", "float"]
    bits: Literal[4, 8]
    group_size: int | None
    """Inputs of an output that share a scale; None: all."""
    symmetric: bool = True
    activations: Literal["int8", "float8"] | None = None
    """dtype to which activations are quantized, with one scale for each token; None: they are not quantized."""

    @property
    def format(self) -> str:
        """Name of the format of the tensors."""
        if self.kind == "float":
            return "float-quantized" if self.activations else "naive-quantized"
        return "int-quantized" if self.bits == 8 and self.activations else "pack-quantized"

    @property
    def packed(self) -> bool:
        """Whether several values share an int32."""
        return self.format == "pack-quantized"

    @property
    def in_vllm(self) -> bool:
        """Whether vLLM reads such matrices. With quantized activations, it does not read 4 bits, groups or zero points."""
        return not self.activations or (self.bits == 8 and self.group_size is None and self.symmetric)

    def to_json(self, targets: Sequence[str]) -> dict[str, Any]:
        """Return an entry of `config_groups`."""
        grouped = self.group_size is not None
        weights = {
            "num_bits": self.bits,
            "type": self.kind,
            "symmetric": self.symmetric,
            "dynamic": False,
            "strategy": "group" if grouped else "channel",
            "group_size": self.group_size,
        }
        activations = None
        if self.activations:
            kind = "int" if self.activations == "int8" else "float"
            activations = {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": True, "strategy": "token"}
        return {
            "targets": list(targets),
            "weights": weights,
            "input_activations": activations,
            "output_activations": None,
            "format": self.format,
        }


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A quantized matrix in the public layout."""

    scheme: Scheme
    values: np.ndarray
    """[out, in], int8 (also for 4 bits) or float8_e4m3fn."""
    scales: np.ndarray
    """[out, groups] float32."""
    zero_points: np.ndarray | None
    """[out, groups] int8."""

    def tensors(self, module: str) -> dict[str, np.ndarray]:
        """Return the tensors of a module by their public names."""
        shapes = tensor_shapes(module, self.scheme, self.values.shape)
        found = {WEIGHT: self.values, SCALE: self.scales.astype(np.float32), ZERO: self.zero_points}
        if self.scheme.packed:
            found[PACKED] = pack(self.values, self.scheme.bits)
            found[SHAPE] = np.array(self.values.shape, np.int64)
            if self.zero_points is not None:
                found[ZERO] = pack(self.zero_points.T, self.scheme.bits).T
        return {name: found[name.rpartition(".")[2]] for name in shapes}


def tensor_shapes(module: str, scheme: Scheme, shape: tuple[int, int]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return the dtype and shape of each tensor of a quantized module, by public name.

    Args:
        module: Public name of the weight without ".weight".
        scheme: How it is quantized.
        shape: (out, in) of the weight.
    """
    outputs, inputs = shape
    grouped = (outputs, 1 if scheme.group_size is None else inputs // scheme.group_size)
    each = 32 // scheme.bits
    tensors: dict[str, tuple[Any, tuple[int, ...]]] = {}
    if scheme.packed:
        tensors[PACKED] = np.int32, (outputs, -(-inputs // each))
        if not module.endswith(_WITHOUT_SHAPE):
            tensors[SHAPE] = np.int64, (2,)
    else:
        tensors[WEIGHT] = FLOAT8 if scheme.kind == "float" else np.int8, shape
    tensors[SCALE] = np.float32, grouped
    if not scheme.symmetric:
        packed = (-(-outputs // each), grouped[1])
        tensors[ZERO] = (np.int32, packed) if scheme.packed else (np.int8, grouped)
    return {f"{module}.{name}": (np.dtype(dtype), size) for name, (dtype, size) in tensors.items()}


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack int8 values [rows, n] of 4 or 8 bits into int32 [rows, n · bits / 32], rounded up.

    Each value plus 2^(bits - 1) is stored, the first one in the lowest bits. Missing values at the end of a row are stored as 0.
    """
    each = 32 // bits
    shifted = (values.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    shifted = np.pad(shifted, ((0, 0), (0, -values.shape[1] % each)))
    if bits == 4:
        shifted = shifted[:, ::2] | shifted[:, 1::2] << 4
    return np.ascontiguousarray(shifted).view("<i4")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the int8 values [rows, count] in int32 [rows, ...]; the reverse of `pack`."""
    found = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 4:
        found = np.stack([found & 15, found >> 4], axis=-1).reshape(len(found), -1)
    return (found[:, :count].astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)


def is_compressed(config: Mapping[str, Any]) -> bool:
    """Return whether the object of a config.json describes weights in this format.

    Raises:
        ConvertError: It describes weights that are quantized in another way. The message names the method.
    """
    found = config.get(QUANTIZATION)
    if found is None:
        return False
    method = found.get("quant_method") if isinstance(found, dict) else found
    if method != "compressed-tensors":
        raise ConvertError(
            f"{QUANTIZATION}: quant_method {shown(method)} is not supported: it must be compressed-tensors, or the weights must not be "
            "quantized. Dequantize the model with the library that wrote it"
        )
    return True


def quantization_config(schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
    """Return the key `quantization_config` of config.json.

    Args:
        schemes: Scheme of each linear layer by module name; None for layers that are not quantized.
    """
    groups: dict[Scheme, list[str]] = {}
    for module, scheme in schemes.items():
        if scheme is not None:
            groups.setdefault(scheme, []).append(module)
    ignored = [module for module, scheme in schemes.items() if scheme is None]
    single = len(groups) == 1
    entries = {
        f"group_{i}": scheme.to_json(["Linear"] if single else _patterns(modules, schemes))
        for i, (scheme, modules) in enumerate(groups.items())
    }
    formats = {scheme.format for scheme in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ["lm_head", *_patterns(ignored, schemes)],
        "config_groups": entries,
        "version": VERSION,
    }


def _patterns(modules: Sequence[str], schemes: Mapping[str, Scheme | None]) -> list[str]:
    """Return patterns that match exactly these modules: one for each kind of layer that is complete, else their names."""
    chosen, patterns = set(modules), []
    for kind in dict.fromkeys(module.rpartition(".")[2] for module in modules):
        alike = [module for module in schemes if module.rpartition(".")[2] == kind]
        complete = all(module in chosen for module in alike)
        patterns += [f"re:.*\\.{kind}$"] if complete else [module for module in alike if module in chosen]
    return patterns
