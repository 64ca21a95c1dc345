"""Options of quantization, and the format of each matrix that follows from them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

import flax.traverse_util

from plamo2_jax.config import ModelConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.plamo2 import abstract_params, declarations
from plamo2_jax.model.quantized import contraction_axes
from plamo2_jax.quantize.rounding import Kind
from plamo2_jax.validation import require, shown

Method = Literal["rtn", "gptq", "awq", "awq+gptq", "smoothquant"]
"""Method of quantization.

rtn: round to nearest.
gptq: correct later columns for the rounding errors of earlier ones (arXiv:2210.17323).
awq: scale channels with large inputs up before rounding (arXiv:2306.00978).
awq+gptq: the scales of AWQ, then GPTQ.
smoothquant: move outliers of the activations into the weights (arXiv:2211.10438), for quantized activations.
"""
Bits = Literal[8, 4, "float8"]
KINDS: dict[object, Kind] = {8: "int8", 4: "int4", "float8": "float8"}


@dataclasses.dataclass(frozen=True)
class MatrixFormat:
    """How to quantize one matrix."""

    kind: Kind
    groups: int = 1
    activations: Literal["int8", "float8"] | None = None


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """Settings of quantization.

    Raises:
        PlamoError: A field is out of range, or two fields contradict each other.
    """

    method: Method = "rtn"
    bits: Bits = 8
    """Bits of the values of each matrix; float8 means float8_e4m3fn."""
    activations: Literal["none", "int8", "float8"] = "none"
    """dtype of the activations in products with quantized matrices. They are quantized per token."""
    group_size: Literal[32, 64, 128] | None = 64
    """Number of inputs that share a scale, in matrices with 4 bits; None: all inputs of an output. Other matrices have one scale per
    output."""
    clip_search: bool = False
    """Also search clipping scales that minimize the squared error with rtn and smoothquant. The other methods always do."""
    damping: float = 0.01
    """GPTQ: fraction of the mean diagonal of the Hessian that is added to its diagonal."""
    alpha: float = 0.5
    """SmoothQuant: migration strength, from 0 to 1. Larger values move more of the outliers from activations to weights."""
    keep_float: tuple[str, ...] = ()
    """Regular expressions of paths of matrices that are not quantized."""
    bits_for: tuple[tuple[str, Bits], ...] = ()
    """Regular expressions of paths, and the bits of their matrices. The last match wins, also over `keep_float`."""

    def __post_init__(self) -> None:
        require(self, "method", self.method in get_args(Method), f"one of {', '.join(get_args(Method))}")
        require(self, "bits", _is_bits(self.bits), "8, 4 or 'float8'")
        require(self, "activations", self.activations in ("none", "int8", "float8"), "none, int8 or float8")
        require(self, "group_size", self.group_size in (32, 64, 128, None), "32, 64, 128 or None")
        texts = not isinstance(self.keep_float, str) and all(isinstance(each, str) for each in self.keep_float)
        require(self, "keep_float", texts, "a sequence of regular expressions")
        pairs = all(len(each) == 2 and isinstance(each[0], str) and _is_bits(each[1]) for each in self.bits_for)
        require(self, "bits_for", pairs, "pairs of a regular expression and 8, 4 or 'float8'")
        require(self, "damping", 0 < self.damping <= 1, "above 0 and at most 1")
        require(self, "alpha", 0 <= self.alpha <= 1, "between 0 and 1")
        fits = self.activations == "none" or (self.activations == "float8") == (self.bits == "float8")
        require(self, "activations", fits, "int8 with 8 or 4 bits, float8 with float8")
        if self.method == "smoothquant" and self.activations == "none":
            raise PlamoError("method=smoothquant needs quantized activations: set activations to int8 or float8")
        for pattern in (*self.keep_float, *(pattern for pattern, _ in self.bits_for)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise PlamoError(f"{pattern!r} is not a regular expression: {error}") from error

    @property
    def calibrated(self) -> bool:
        """Whether the method needs calibration data."""
        return self.method != "rtn"

    @property
    def searches_clip(self) -> bool:
        """Whether scales that clip are searched."""
        return self.clip_search or self.method not in ("rtn", "smoothquant")


def _is_bits(value: object) -> bool:
    return value in get_args(Bits) and not isinstance(value, bool)


def matrix_formats(config: ModelConfig, options: QuantizeConfig) -> dict[str, MatrixFormat]:
    """Return the format of each matrix to quantize, by its path in the model without a scan over layers.

    By default, the projections to B, C and dt stay float. Embedding and head have 8 bits at least, and so have the input and output
    projections of Mamba mixers, which lose most with 4 bits.

    Raises:
        PlamoError: The group size does not divide the inputs of a matrix, a regular expression matches no matrix, or all matrices stay
            float.
    """
    formats, patterns = {}, {*options.keep_float, *(pattern for pattern, _ in options.bits_for)}
    matched: set[str] = set()
    for path, (declared, shape) in matrices(config).items():
        found = {pattern for pattern in patterns if re.search(pattern, path)}
        matched |= found
        bits = default_bits(declared, options.bits)
        if found & set(options.keep_float):
            bits = None
        for pattern, wanted in options.bits_for:
            bits = wanted if pattern in found else bits
        if bits is not None:
            formats[path] = matrix_format(path, declared, shape, bits, options)
    if patterns - matched:
        raise PlamoError(
            f"{min(patterns - matched)!r} matches no matrix: paths look like {', '.join(list(matrices(config))[:4])}"
        )
    if not formats:
        raise PlamoError(
            f"keep_float={shown(options.keep_float)} leaves all matrices in floating point: it must leave one to quantize"
        )
    return formats


def default_bits(declared: axes.Declaration, bits: Bits) -> Bits | None:
    """Return the bits of a matrix if the user gives none for it; None if it stays float."""
    names = set(declared.names)
    if names & {axes.STATE, axes.DT_RANK}:
        return None
    if bits == 4 and names & {axes.VOCAB, axes.MAMBA_HEADS}:
        return 8
    return bits


def matrix_format(
    path: str, declared: axes.Declaration, shape: Sequence[int], bits: Bits, options: QuantizeConfig
) -> MatrixFormat:
    """Return the format of a matrix with the given bits.

    Raises:
        PlamoError: The group size does not divide its inputs.
    """
    activations = None if options.activations == "none" or axes.VOCAB in declared.names else options.activations
    if bits != "float8" and activations == "float8":
        activations = None
    if bits == "float8" and activations == "int8":
        activations = None
    if bits != 4:
        return MatrixFormat(KINDS[bits], 1, activations)
    if options.group_size is None:
        return MatrixFormat("int4", 1, activations)
    inputs = math.prod(shape[i] for i in contraction_axes(declared))
    if inputs % options.group_size:
        raise PlamoError(
            f"{path} has {inputs} inputs, which are not divisible by group_size={options.group_size}: use "
            "another group size, or 8 bits for this matrix"
        )
    return MatrixFormat("int4", inputs // options.group_size, activations)


def matrices(config: ModelConfig) -> dict[str, tuple[axes.Declaration, tuple[int, ...]]]:
    """Return the declaration and the shape of each matrix, by path."""
    model = Plamo2(config, scan_layers=False)
    declared = flax.traverse_util.flatten_dict(declarations(model), sep="/")
    shapes = flax.traverse_util.flatten_dict(abstract_params(model), sep="/")
    return {path: (each, shapes[path].shape) for path, each in declared.items() if axes.is_matrix(each.names)}
