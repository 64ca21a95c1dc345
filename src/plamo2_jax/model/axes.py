"""Names of parameter axes, declared where a parameter is made and read by all that treats parameters by kind; names of mesh axes."""

from __future__ import annotations

import jax

LAYERS = "layers"
"""Periods of a run, stacked by `nn.scan`."""
VOCAB = "vocab"
EMBED = "embed"
"""The residual stream."""
MLP = "mlp"
HEADS = "heads"
KV_HEADS = "kv_heads"
HEAD_DIM = "head_dim"
MAMBA_HEADS = "mamba_heads"
STATE = "state"
DT_RANK = "dt_rank"
CONV = "conv"
"""Taps of the convolution."""

Axes = tuple[str | None, ...]
"""The axes of one parameter; None for a stack of unlike parts (z and x, gate and up, B and C)."""


# Axes of a mesh of devices.
DATA = "data"
FSDP = "fsdp"
SEQUENCE = "sequence"
TENSOR = "tensor"


def is_axes(leaf: object) -> bool:
    """Whether a tree node is the axes of one parameter (for `jax.tree.map(..., is_leaf=is_axes)`)."""
    return isinstance(leaf, tuple) and all(axis is None or isinstance(axis, str) for axis in leaf)


def map_with_axes(function, axes, *trees):
    """`jax.tree.map` over a tree of axes and trees of the same structure: `function(axes, *leaves)`."""
    return jax.tree.map(function, axes, *trees, is_leaf=is_axes)
