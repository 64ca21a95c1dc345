"""Names of axes: of parameters, which declare them where they are made, and of the mesh of devices.

Sharding, pruning, growth and weight decay read a parameter's axes there.
"""

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

RANK = "rank"
"""Between the two factors of a low-rank adapter."""

# Axes of the mesh (see plamo2_jax.sharding.mesh).
DATA = "data"
FSDP = "fsdp"
SEQUENCE = "sequence"
TENSOR = "tensor"
ROWS = (DATA, FSDP)
"""Mesh axes that the rows of a batch are divided over."""

Axes = tuple[str | None, ...]
"""The axes of one parameter; None for a stack of unlike parts (z and x, gate and up, B and C)."""

# Axes along which a weight does not map one feature to another: the stack of layers, the taps of a depthwise filter,
# and the channels inside a head, which belong to the head's axis.
_NOT_FEATURES = frozenset({None, LAYERS, CONV, HEAD_DIM})


def is_matrix(names: Axes) -> bool:
    """Whether a parameter maps features to other features; norms, biases, per-head scales and depthwise filters do not."""
    return len(set(names) - _NOT_FEATURES) >= 2


def is_axes(leaf: object) -> bool:
    """Whether a tree node is the axes of one parameter (for `jax.tree.map(..., is_leaf=is_axes)`)."""
    return isinstance(leaf, tuple) and all(axis is None or isinstance(axis, str) for axis in leaf)


def map_with_axes(function, axes, *trees):
    """`jax.tree.map` over a tree of axes and trees of the same structure: `function(axes, *leaves)`."""
    return jax.tree.map(function, axes, *trees, is_leaf=is_axes)
