"""Quantized parameters and the matrices of the public layout, which are stacks of several parameters.

A public matrix has one scheme. Parameters of the same matrix that are quantized in different ways are widened without loss to a common
scheme where there is one: 4 bits to 8, and groups to groups that divide both. Otherwise the matrix is not quantized in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from plamo2_jax.convert.compressed_tensors import Matrix, Scheme
from plamo2_jax.convert.layout import Part, PublicTensor
from plamo2_jax.model.plamo2 import period_name
from plamo2_jax.model.quantized import QuantizedArray, stored_order


def leaf_of(part: Part, leaves: Mapping[str, Any]) -> Any:
    """Return one period of the parameter of a part, from the flat tree of a model with or without a scan over layers."""
    if (path := period_path(part)) in leaves:
        return leaves[path]
    # np.asarray makes no copy on CPU, while indexing a JAX array does.
    return jax.tree.map(lambda array: np.asarray(array)[part.period], leaves[part.path])


def period_path(part: Part) -> str:
    """Return the path of the parameter of a part in a model without a scan over layers."""
    run, _, rest = part.path.partition("/")
    return part.path if part.period is None else f"{period_name(run, part.period)}/{rest}"


def matrix_shape(tensor: PublicTensor) -> tuple[int, int]:
    """Return (out, in) of a public matrix."""
    return tensor.shape[0], tensor.shape[1]


def scheme_of(tensor: PublicTensor, leaves: Mapping[str, Any]) -> Scheme | None:
    """Return the scheme of a public tensor, or None if it is not quantized in the file. No value is read."""
    if len(tensor.shape) != 2 or tensor.parts[0].period is None:
        # vLLM loads the embedding and the head only if they are not quantized.
        return None
    found = [leaves[path if (path := period_path(part)) in leaves else part.path] for part in tensor.parts]
    if not all(isinstance(leaf, QuantizedArray) for leaf in found):
        return None
    kinds = {_kind(leaf)[0] for leaf in found}
    inputs, groups = tensor.shape[1], math.lcm(*(leaf.scales.shape[-1] for leaf in found))
    if len(kinds) > 1 or inputs % groups:
        return None
    activations = {leaf.activations for leaf in found}
    return Scheme(
        kind=kinds.pop(),
        bits=max(_kind(leaf)[1] for leaf in found),
        group_size=None if groups == 1 else inputs // groups,
        symmetric=all(leaf.zero_points is None for leaf in found),
        activations=activations.pop() if len(activations) == 1 else None,
    )


def matrix_of(tensor: PublicTensor, leaves: Mapping[str, Any], scheme: Scheme) -> Matrix:
    """Return a public matrix in a scheme that `scheme_of` returned."""
    outputs, inputs = matrix_shape(tensor)
    groups = 1 if scheme.group_size is None else inputs // scheme.group_size
    values, scales, zeros = [], [], []
    for part in tensor.parts:
        leaf = leaf_of(part, leaves)
        order = public_order(part, leaf.contracted)
        stored = np.asarray(leaf.values)
        stored = stored if scheme.kind == "float" else stored.astype(np.int8)
        values.append(stored.transpose(order).reshape(-1, inputs))
        grouped = _group_order(order, leaf.contracted)

        def rows(array: Any, order: Sequence[int] = grouped) -> np.ndarray:
            found = np.asarray(array).transpose(order)
            found = found.reshape(-1, found.shape[-1])
            return np.repeat(found, groups // found.shape[-1], axis=1)

        scales.append(rows(leaf.scales))
        if not scheme.symmetric:
            zero = np.zeros(leaf.scales.shape, np.int8) if leaf.zero_points is None else leaf.zero_points
            zeros.append(rows(np.asarray(zero).astype(np.int8)))
    zero_points = np.concatenate(zeros) if zeros else None
    return Matrix(scheme, np.concatenate(values).reshape(outputs, inputs), np.concatenate(scales), zero_points)


def leaf_from(part: Part, first_row: int, matrix: Matrix, contracted: tuple[int, ...]) -> QuantizedArray:
    """Return one period of a parameter from the public matrix that holds it, as arrays of NumPy.

    Args:
        part: The part.
        first_row: Its first row in the matrix.
        matrix: The matrix.
        contracted: Contraction axes of the parameter, counted from the end.
    """
    order = public_order(part, contracted)
    grouped = _group_order(order, contracted)
    outputs = part.view[: len(grouped) - 1]
    rows = slice(first_row, first_row + math.prod(outputs))
    values = matrix.values[rows].reshape(part.view).transpose(np.argsort(order))
    if matrix.scheme.bits == 4:
        values = values.astype(ml_dtypes.int4)

    def of_groups(array: np.ndarray) -> np.ndarray:
        return array[rows].reshape(*outputs, -1).transpose(np.argsort(grouped))

    zeros = None if matrix.zero_points is None else of_groups(matrix.zero_points).astype(values.dtype)
    return QuantizedArray(values, of_groups(matrix.scales), zeros, contracted, matrix.scheme.activations)


def public_order(part: Part, contracted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order of the stored axes of a quantized parameter (outputs, then inputs) in the public layout.

    Axis v of the part's view is the stored axis order[v]. The inputs are last in both, in the same order.
    """
    stored = stored_order(len(part.order), contracted)
    in_view = [part.order[axis] for axis in stored]
    return tuple(int(axis) for axis in np.argsort(in_view))


def _group_order(order: Sequence[int], contracted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order for arrays of one entry a group, whose last axis replaces the inputs."""
    outputs = len(order) - len(contracted)
    return (*order[:outputs], outputs)


def _kind(leaf: QuantizedArray) -> tuple[str, int]:
    if np.dtype(leaf.values.dtype) == ml_dtypes.int4:
        return "int", 4
    return ("int", 8) if np.dtype(leaf.values.dtype) == np.int8 else ("float", 8)
