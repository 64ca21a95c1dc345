"""Rows of matrices as bytes of the GGUF types.

A block of Q8_0 is a float16 scale d and 32 int8 values q: weight = d · q. A block of Q4_0 is a float16 scale and 16 bytes; byte j holds
q + 8 of value j in its low and of value j + 16 in its high four bits, q from -8 to 7. Source: ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

import numpy as np

from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.finite import is_finite
from plamo2_jax.convert.gguf_layout import BLOCK, TensorType

_MAX_F16 = 65504.0


def float_rows(rows: np.ndarray, type: TensorType, name: str) -> np.ndarray:
    """Return the bytes of float32 rows; the package gguf quantizes to Q8_0 and Q4_0.

    Args:
        rows: [n, k] float32; k is a multiple of 32 for Q8_0 and Q4_0.
        type: Type of the tensor in the file.
        name: Name of the tensor, for errors.

    Returns:
        [bytes] uint8.

    Raises:
        ConvertError: A value is NaN or infinite, or too large for the type.
    """
    from gguf import GGMLQuantizationType, quants

    if not is_finite(rows):
        raise ConvertError(f"tensor {name} holds NaN or infinity: parameters must be finite")
    if type not in ("F32", "BF16") and np.abs(rows).max(initial=0) > _MAX_F16:
        raise ConvertError(f"tensor {name} has values beyond ±{_MAX_F16:g}, which {type} cannot hold. Use type bf16")
    return quants.quantize(rows, GGMLQuantizationType[type]).reshape(-1).view(np.uint8)


def integer_rows(values: np.ndarray, scales: np.ndarray, type: TensorType, name: str) -> np.ndarray:
    """Return the bytes of quantized rows in Q8_0 or Q4_0. The values are kept, and the scales are rounded to float16.

    Args:
        values: [n, k] int8, from -8 to 7 for Q4_0.
        scales: [n, groups] float32, with k / groups a multiple of 32.
        type: Type of the tensor in the file.
        name: Name of the tensor, for errors.

    Returns:
        [bytes] uint8.

    Raises:
        ConvertError: A scale is NaN or too large for float16.
    """
    if not np.abs(scales).max(initial=0) <= _MAX_F16:  # also catches NaN
        raise ConvertError(
            f"tensor {name} has a scale that is NaN or beyond ±{_MAX_F16:g}, which {type} cannot hold. Use type bf16"
        )
    blocks = values.reshape(-1, BLOCK)
    repeated = np.repeat(scales.astype(np.float16).reshape(-1), len(blocks) // scales.size)
    packed = blocks.view(np.uint8)
    if type == "Q4_0":
        unsigned = (blocks + np.int8(8)).view(np.uint8)
        packed = unsigned[:, : BLOCK // 2] | unsigned[:, BLOCK // 2 :] << np.uint8(4)
    return np.concatenate([repeated[:, None].view(np.uint8), packed], axis=1).reshape(-1)
