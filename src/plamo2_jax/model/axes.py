"""Names of axes: of parameters, which declare them where they are made, and of the mesh of devices.

Sharding, pruning, growth and weight decay read a parameter's axes there.
"""

from __future__ import annotations

import dataclasses

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

GROUPS = {KV_HEADS: HEADS}
"""Axes whose every entry is shared by a run of equally many entries of another: head h reads key/value head h // (heads / kv_heads)."""

Axes = tuple[str | None, ...]
"""The axes of one parameter; None for a stack of unlike parts (z and x, gate and up, B and C)."""

# Axes along which a weight does not map one feature to another: the stack of layers, the taps of a depthwise filter,
# and the channels inside a head, which belong to the head's axis.
_NOT_FEATURES = frozenset({None, LAYERS, CONV, HEAD_DIM})


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a parameter says of itself where it is made; growing and pruning know no more of the network than this.

    Raises:
        ValueError: it contracts an axis that it does not have, or is a norm's scale of more or fewer than one axis.
    """

    names: Axes
    """Its axes."""
    contracts: tuple[str, ...] = ()
    """Axes that are summed over where the parameter is used. Along its other axes it makes the channels, or multiplies them one by one."""
    norm_offset: float | None = None
    """Of the scale of an RMS norm over its one axis: the norm multiplies by offset + scale. None: not such a scale.
    One that `contracts` its axis stands for a reader that has no weight of its own: what it scales is summed over without one."""
    ends_residual: bool = False
    """Whether a residual branch ends in it: where the whole factor is 0 the branch adds nothing."""

    def __post_init__(self) -> None:
        if unknown := set(self.contracts) - set(self.names):
            raise ValueError(f"a parameter with the axes {self.names} cannot contract {', '.join(sorted(unknown))}")
        if self.norm_offset is not None and len([name for name in self.names if name != LAYERS]) != 1:
            raise ValueError(f"a norm's scale has one axis, not {self.names}")


def is_matrix(names: Axes) -> bool:
    """Whether a parameter maps features to other features; norms, biases, per-head scales and depthwise filters do not."""
    return len(set(names) - _NOT_FEATURES) >= 2


def is_axes(leaf: object) -> bool:
    """Whether a tree node is the axes of one parameter (for `jax.tree.map(..., is_leaf=is_axes)`)."""
    return isinstance(leaf, tuple) and all(axis is None or isinstance(axis, str) for axis in leaf)


def map_with_axes(function, axes, *trees):
    """`jax.tree.map` over a tree of axes and trees of the same structure: `function(axes, *leaves)`."""
    return jax.tree.map(function, axes, *trees, is_leaf=is_axes)
