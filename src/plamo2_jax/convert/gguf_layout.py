"""Tensors of a GGUF file of the architecture plamo2: names, types and values.

Names and meanings: the loader of llama.cpp (src/models/plamo2.cpp). Matrices have the rows of the public layout. The offsets of the block
norms are part of the stored scales, and A_log is stored as A = -exp(A_log).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.layout import LM_HEAD, Part, PublicTensor, public_tensors
from plamo2_jax.model import Plamo2, declarations
from plamo2_jax.model.plamo2 import period_name
from plamo2_jax.model.quantized import is_quantized

FileType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
"""Type of most matrices of a file."""
TensorType = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"]
BLOCK = 32
"""Values that share a scale in Q8_0 and Q4_0. They are consecutive in a row."""
BLOCK_BYTES = {"F32": 4 * BLOCK, "F16": 2 * BLOCK, "BF16": 2 * BLOCK, "Q8_0": 2 + BLOCK, "Q4_0": 2 + BLOCK // 2}
"""Bytes of 32 values of each type."""

_GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    LM_HEAD: "output.weight",
}
_LAYER = {
    "pre_mixer_norm.weight": "attn_norm.weight",
    "post_mixer_norm.weight": "post_attention_norm",
    "pre_mlp_norm.weight": "ffn_norm.weight",
    "post_mlp_norm.weight": "post_ffw_norm",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.bcdt_proj.weight": "ssm_x.weight",
    "mixer.B_norm_weight": "ssm_b_norm",
    "mixer.C_norm_weight": "ssm_c_norm",
    "mixer.dt_norm_weight": "ssm_dt_norm",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.qkv_proj.weight": "attn_qkv.weight",
    "mixer.q_weight": "attn_q_norm.weight",
    "mixer.k_weight": "attn_k_norm.weight",
    "mixer.o_proj.weight": "attn_output.weight",
}
_PREFIX = "model.layers.layers."
# They produce dt and the inputs of the scan, whose errors accumulate over the sequence.
_SCAN_INPUTS = ("ssm_x.weight", "ssm_dt.weight")
# Preferred Networks found it the matrix most sensitive to 4 bits (plamo-translate-cli).
_OUT_PROJ = "ssm_out.weight"
_TABLES = ("token_embd.weight", "output.weight")
# llama.cpp multiplies them element by element, and it has no such operation for other types.
_NOT_MATRICES = ("ssm_conv1d.weight", "attn_q_norm.weight", "attn_k_norm.weight")


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file. Its rows are the rows of a public tensor."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    public: PublicTensor
    norm_offset: float
    """Added to the values."""
    is_a_log: bool
    """Whether the values are A_log. The file stores -exp(A_log)."""

    @property
    def bytes(self) -> int:
        """Number of bytes in the file."""
        return self.byte_offset(math.prod(self.shape))

    def byte_offset(self, values: int) -> int:
        """Return the number of bytes of the first `values` values."""
        return values * BLOCK_BYTES[self.type] // BLOCK

    def parts(self) -> Iterator[tuple[Part, int]]:
        """Yield the parts of the public tensor, and the bytes of the parts before."""
        start = 0
        for part in self.public.parts:
            yield part, self.byte_offset(start)
            start += part.size

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Return the float32 values to store for float32 values of the public tensor."""
        if self.is_a_log:
            return -np.exp(values, dtype=np.float64).astype(np.float32)
        return values + np.float32(self.norm_offset) if self.norm_offset else values


def gguf_tensors(config: ModelConfig, kind: FileType, params: Mapping[str, Any] | None = None) -> list[GgufTensor]:
    """Return the tensors of a file, in network order.

    Args:
        config: Shape of the model.
        kind: Type of most matrices.
        params: Parameters by path, with or without stacked layers; None for a model without quantized matrices. A matrix keeps its own 8
            or 4 bits if `kind` is a quantized type, and a matrix that was left in float becomes F16.
    """
    params = params or {}
    declared = flax.traverse_util.flatten_dict(declarations(Plamo2(config)), sep="/")
    return [_tensor(public, kind, params, declared) for public in public_tensors(config)]


def _tensor(public: PublicTensor, kind: FileType, params: Mapping[str, Any], declared: Mapping[str, Any]) -> GgufTensor:
    if public.name in _GLOBAL:
        name = short = _GLOBAL[public.name]
    else:
        index, rest = public.name.removeprefix(_PREFIX).split(".", 1)
        short = _LAYER[rest]
        name = f"blk.{index}.{short}"
    # The filters of the convolution have an axis of size 1 in the middle.
    shape = (public.shape[0], public.shape[-1]) if len(public.shape) == 3 else public.shape
    leaves = [_leaf(params, part) for part in public.parts]
    # The scale of a norm is one part of one axis. The per-head scales of queries and keys have no offset.
    offset = declared[public.parts[0].path].norm_offset or 0.0
    type = _type(short, shape, kind, leaves, any(map(is_quantized, params.values())))
    return GgufTensor(name, shape, type, public, offset, short == "ssm_a")


def _leaf(params: Mapping[str, Any], part: Part) -> Any:
    """Return the parameter of a part: all periods of it if the layers are stacked."""
    if part.path in params or part.period is None:
        return params.get(part.path)
    run, rest = part.path.split("/", 1)
    return params.get(f"{period_name(run, part.period)}/{rest}")


def _type(short: str, shape: tuple[int, ...], kind: FileType, leaves: list[Any], quantized: bool) -> TensorType:
    """Return the type of a tensor; `quantized` states whether any matrix of the model is quantized."""
    if len(shape) == 1 or short in _NOT_MATRICES:
        return "F32"
    if kind in ("f32", "f16", "bf16"):
        return {"f32": "F32", "f16": "F16", "bf16": "BF16"}[kind]
    if shape[-1] % BLOCK:
        return "F16"
    if quantized and not all(map(is_quantized, leaves)):
        return "F16"
    if quantized and all(map(has_blocks, leaves)):
        # Q8_0 holds 4-bit values exactly.
        return "Q4_0" if kind == "q4_0" and all(leaf.values.dtype == jnp.int4 for leaf in leaves) else "Q8_0"
    if short in _SCAN_INPUTS or (short == _OUT_PROJ and kind == "q4_0"):
        return "F16"
    # Values of 8 bits without blocks, such as float8, keep their bits.
    wide = any(leaf.values.dtype != jnp.int4 for leaf in leaves if is_quantized(leaf))
    return "Q8_0" if short in _TABLES or kind == "q8_0" or wide else "Q4_0"


def has_blocks(leaf: Any) -> bool:
    """Return whether a matrix fits into blocks: integers without zero points, in groups of n · 32 inputs."""
    if not is_quantized(leaf) or leaf.zero_points is not None:
        return False
    inputs = math.prod(leaf.values.shape[-len(leaf.contracted) :])
    return leaf.values.dtype in (jnp.int4, jnp.int8) and inputs % (leaf.scales.shape[-1] * BLOCK) == 0


def default_type(params: Iterable[Any]) -> FileType:
    """Return the type that fits parameters: q4_0 if some have 4 bits, q8_0 if some are quantized otherwise, or else f16."""
    dtypes = {leaf.values.dtype for leaf in params if is_quantized(leaf)}
    return "q4_0" if jnp.dtype(jnp.int4) in dtypes else "q8_0" if dtypes else "f16"


def check_type(kind: FileType, params: Mapping[str, Any]) -> None:
    """Raise ConvertError if a file type would quantize 8-bit matrices again, to 4 bits."""
    if kind == "q4_0" and default_type(params.values()) == "q8_0":
        raise ConvertError(
            "type q4_0 is not allowed for a model whose matrices are quantized to 8 bits: they would be "
            "quantized twice. Use q8_0, or quantize the float model to 4 bits"
        )


def describe_conversion(tensors: list[GgufTensor], kind: FileType, params: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each way in which a file does not hold matrices in the type or the values that the user expects."""
    notes = []
    if kind in ("q8_0", "q4_0"):
        odd = [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.shape[-1] % BLOCK]
        if odd := [tensor for tensor in odd if tensor.type != "F32"]:
            notes.append(
                f"{len(odd)} matrices are written in F16, because their row length is not a multiple of "
                f"{BLOCK}, the block size of {kind.upper()}"
            )
    matrices = {
        tensor.name: [leaf for part in tensor.public.parts if is_quantized(leaf := _leaf(params, part))]
        for tensor in tensors
    }
    again, floats = [], []
    for tensor in tensors:
        if leaves := matrices[tensor.name]:
            if tensor.type in ("F32", "F16", "BF16"):
                floats.append(tensor)
            elif not all(map(has_blocks, leaves)):
                again.append(tensor)
    for found, what in ((floats, "dequantized"), (again, "dequantized and quantized again")):
        if found:
            types = ", ".join(sorted({tensor.type for tensor in found}))
            reason = "" if kind not in ("q8_0", "q4_0") else ": GGUF has no blocks for their format"
            notes.append(f"{len(found)} quantized matrices are {what} to {types}{reason}")
    return notes


def count_types(tensors: list[GgufTensor]) -> str:
    """Return the number of tensors of each type, such as "34 Q8_0, 12 F16, 60 F32"."""
    types = sorted((tensor.type for tensor in tensors), key=list(BLOCK_BYTES).index, reverse=True)
    return ", ".join(f"{len(list(group))} {type}" for type, group in itertools.groupby(types))
