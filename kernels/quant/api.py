"""`quantized_product`: activations times a quantized matrix, with a choice of implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
from jaxtyping import Array, Float, Int

from plamo2_kernels import native
from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.quant import pallas_tpu
from plamo2_kernels.quant.ffi import Matrix, integer_products, why_not
from plamo2_kernels.quant.reference import reference_product
from plamo2_kernels.quant.xla import xla_product

Implementation = Literal["auto", "reference", "xla", "ffi", "pallas_tpu"]
MOST_FFI_ROWS = 64
"""Up to this number of rows, "auto" calls the C++ kernels on CPU."""


def quantized_product(
    x: Float[Array, "rows k"],
    values: Int[Array, "n k"] | Float[Array, "n k"],
    scales: Float[Array, "n groups"],
    zero_points: Int[Array, "n groups"] | None = None,
    *,
    activations: Literal["int8", "float8"] | None = None,
    implementation: Implementation = "auto",
    interpret: Any = False,
) -> Float[Array, "rows n"]:
    """Return x Wᵀ for W = (values - zero points) · scales, where the inputs of an output are divided into groups of equal size.

    The row of a result depends on its row of x alone: "ffi" gives the same bits whatever the other rows are, and how many.

    Args:
        x: Activations of any float dtype.
        values: Quantized matrix: int8, int4 or float8_e4m3fn.
        scales: Scales of the groups.
        zero_points: Integers that represent 0; None: 0 itself.
        activations: Quantize each row of x to this dtype, with one scale. None: x stays as it is; with integers on CPU, it is rounded to 16
            bits relative to its largest magnitude.
        implementation: "ffi" calls C++ kernels on CPU; for up to `MOST_FFI_ROWS` rows of integers, "auto" does so too if they can be
            compiled. "pallas_tpu" is for up to 64 rows of bfloat16 with int4 in groups on TPU, where "auto" chooses it. Otherwise "auto"
            is "xla". "reference" computes the matrix in float32 first.
        interpret: Run "pallas_tpu" on any platform: True or an InterpretParams.

    Returns:
        The product in float32 (float64 if x is float64).

    Raises:
        ValueError: Shapes do not fit together, or the implementation is unknown.
        ImplementationError: "ffi" or "pallas_tpu" cannot run here or with these shapes and dtypes.
    """
    if implementation not in get_args(Implementation):
        allowed = ", ".join(get_args(Implementation))
        raise ValueError(f"quantized_product: implementation={implementation!r} must be one of {allowed}")
    _check_shapes(x, values, scales, zero_points)
    settings = (x, values, scales, zero_points, activations)
    if implementation == "reference":
        return reference_product(*settings)
    if implementation == "ffi":
        if reason := why_not(x, values, activations):
            raise ImplementationError(f'quantized_product: implementation="ffi" cannot run: {reason}. Use "xla"')
        native.require()
        return integer_products(x, [(values, scales, zero_points)], activations)[0]
    on_tpu = pallas_tpu.why_not(*settings)
    if implementation == "pallas_tpu":
        if on_tpu:
            raise ImplementationError(f'quantized_product: implementation="pallas_tpu" cannot run: {on_tpu}. Use "xla"')
        return pallas_tpu.pallas_product(x, values, scales, interpret=interpret)
    arrays = [each for each in settings[:4] if each is not None]
    # A program for another platform may be made on this one.
    special = {}
    if implementation == "auto" and not on_tpu:
        special["tpu"] = lambda *arrays: pallas_tpu.pallas_product(*arrays)
    few = implementation == "auto" and x.shape[0] <= MOST_FFI_ROWS and not why_not(x, values, activations)
    if few and native.is_available():
        special["cpu"] = lambda x, *matrix: integer_products(x, [_padded(matrix)], activations)[0]
    if not special:
        return xla_product(*settings)
    return jax.lax.platform_dependent(
        *arrays, default=lambda x, *matrix: xla_product(x, *_padded(matrix), activations), **special
    )


def quantized_products(
    x: Float[Array, "rows k"],
    matrices: Sequence[Matrix],
    *,
    activations: Literal["int8", "float8"] | None = None,
    implementation: Implementation = "auto",
) -> tuple[Float[Array, "rows _"], ...]:
    """Return `quantized_product` for each of several matrices.

    One call of the C++ function computes all of them if they have the same dtype. It quantizes the activations once and divides the work
    over threads once.

    Args:
        x: Activations of any float dtype.
        matrices: Values, scales and zero points (or None) of each matrix.
        activations: See `quantized_product`.
        implementation: See `quantized_product`.
    """

    def one_by_one(x, matrices):
        settings = {"activations": activations, "implementation": implementation}
        return tuple(quantized_product(x, *matrix, **settings) for matrix in matrices)

    several = len(matrices) > 1 and len({values.dtype for values, _, _ in matrices}) == 1
    fits = several and x.shape[0] <= MOST_FFI_ROWS and not any(why_not(x, each[0], activations) for each in matrices)
    if implementation not in ("auto", "ffi") or not fits or not native.is_available():
        return one_by_one(x, matrices)

    def together(x, matrices):
        return integer_products(x, matrices, activations)

    # A program for another platform may be made on this one.
    return jax.lax.platform_dependent(x, tuple(matrices), cpu=together, default=one_by_one)


def _padded(matrix: tuple[Array, ...]) -> tuple[Array | None, ...]:
    return matrix if len(matrix) == 3 else (*matrix, None)


def _check_shapes(x, values, scales, zero_points) -> None:
    if x.ndim != 2 or values.ndim != 2 or values.shape[1] != x.shape[1]:
        raise ValueError(f"quantized_product: x {x.shape} and values {values.shape} must be [rows, k] and [n, k]")
    if scales.ndim != 2 or scales.shape[0] != values.shape[0] or not scales.shape[1] or x.shape[1] % scales.shape[1]:
        raise ValueError(
            f"quantized_product: scales {scales.shape} must be [{values.shape[0]}, groups], with groups dividing the {x.shape[1]} inputs"
        )
    if zero_points is not None and zero_points.shape != scales.shape:
        raise ValueError(
            f"quantized_product: zero_points {zero_points.shape} must have the shape of scales, {scales.shape}"
        )
