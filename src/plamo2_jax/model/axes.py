"""Names of the axes of parameters and of the device mesh.

Every parameter declares its axes where it is created. Sharding, pruning, growth, weight decay and quantization select parameters by them.
"""

from __future__ import annotations

import dataclasses

import jax

LAYERS = "layers"
"""Periods of a layer group, stacked for `nn.scan`."""
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
"""The axis between the two factors of a low-rank adapter."""

# Axes of the device mesh (see plamo2_jax.sharding.mesh).
DATA = "data"
FSDP = "fsdp"
SEQUENCE = "sequence"
TENSOR = "tensor"
ROWS = (DATA, FSDP)
"""Mesh axes over which the rows of a batch are divided."""

GROUPS = {KV_HEADS: HEADS}
"""Axes whose entries are shared by groups of entries of another axis: query head h reads key/value head h // (heads / kv_heads)."""

Axes = tuple[str | None, ...]
"""Axis names of one parameter. None is an axis that stacks different matrices, such as z and x in in_proj."""

# Axes along which a weight does not map one feature to another: the stacked layers, the taps of a depthwise filter, and the channels of a
# head, which belong to the axis of heads.
_NON_FEATURE_AXES = frozenset({None, LAYERS, CONV, HEAD_DIM})


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a parameter states where it is created. Growing and pruning know nothing else about the network.

    Raises:
        ValueError: The parameter does not have an axis of `contracts`, or the scale of a norm does not have exactly one axis.
    """

    names: Axes
    """Axis names of the parameter."""
    contracts: tuple[str, ...] = ()
    """Axes that the product with the parameter sums over. Along its other axes, the parameter creates channels or scales them."""
    norm_offset: float | None = None
    """For the scale of an RMS norm over one axis: the norm multiplies by norm_offset + scale. None for every other parameter.
    Such a scale `contracts` its axis if the scaled channels are then summed over without a weight."""
    ends_residual: bool = False
    """Whether the parameter is the last factor of a residual branch: where the factor is 0, the branch adds nothing."""

    def __post_init__(self) -> None:
        if unknown := set(self.contracts) - set(self.names):
            raise ValueError(f"a parameter with the axes {self.names} cannot contract {', '.join(sorted(unknown))}")
        if self.norm_offset is not None and len([name for name in self.names if name != LAYERS]) != 1:
            raise ValueError(f"the scale of a norm must have one axis, not {self.names}")


def is_matrix(names: Axes) -> bool:
    """Return whether a parameter maps features to other features. Norms, biases, per-head scales and depthwise filters do not."""
    return len(set(names) - _NON_FEATURE_AXES) >= 2


def is_axes(leaf: object) -> bool:
    """Return whether a tree node is the axis names of one parameter (for `jax.tree.map(..., is_leaf=is_axes)`)."""
    return isinstance(leaf, tuple) and all(axis is None or isinstance(axis, str) for axis in leaf)


def map_with_axes(function, axes, *trees):
    """Map `function(axes, *leaves)` over a tree of axis names and trees of the same structure."""
    return jax.tree.map(function, axes, *trees, is_leaf=is_axes)
