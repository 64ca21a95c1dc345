"""Parameters for inference: the matrices in the dtype they are used in."""

from __future__ import annotations

import jax

from plamo2_jax.model import Plamo2, logical_axes
from plamo2_jax.model.axes import CONV, LAYERS, map_with_axes
from plamo2_jax.model.plamo2 import period_name


def cast_matrices(model: Plamo2, params: dict) -> dict:
    """Parameters with every matrix in the model's activation dtype.

    The network casts matrices where it uses them, so its results stay the same to the bit, while decoding, which is bound by reading
    weights, reads half the bytes in bfloat16. Vectors (norms, decay rates, step sizes) and the convolution, which are used in
    float32, keep their dtype.
    """

    def cast(names, parameter):
        is_matrix = sum(name != LAYERS for name in names) >= 2 and CONV not in names
        return parameter.astype(model.activation_dtype) if is_matrix else parameter

    return map_with_axes(cast, logical_axes(model), params)


def unstack(model: Plamo2, params: dict) -> dict:
    """Parameters for the model without a scan over layers: those of each period apart, in memory of their own."""
    outside = dict(params)
    for i, run in enumerate(model.config.layer_groups):
        stacked = outside.pop(f"run_{i}")
        for j in range(run.count):
            outside[period_name(f"run_{i}", j)] = jax.tree.map(lambda leaf, j=j: leaf[j], stacked)
    return outside
