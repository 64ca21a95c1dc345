"""Sharding rules: one table per strategy that maps parameter axes to mesh axes, and the shardings that follow from it.

In the shapes below, F is fsdp × sequence, T is tensor, and `/` means "divided by": each device holds a part of that shape. The axis
`layers`, the first axis of every layer parameter, is scanned over and never divided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.errors import PlamoError
from plamo2_jax.model import axes
from plamo2_jax.model.axes import FSDP, ROWS, SEQUENCE, TENSOR

Strategy = Literal["fsdp", "fsdp_tensor", "tensor", "zero1", "zero2"]
"""fsdp: parameters are divided over fsdp × sequence along the residual width, and gathered where they are used (ZeRO-3).
fsdp_tensor: as fsdp, and heads, MLP columns and vocabulary are divided over tensor (Megatron). With tensor=1 it equals fsdp.
tensor: parameters are divided over tensor only, for decoding, where gathering them for each token would be slow.
zero1: as fsdp, but the train step gathers the parameters once and sums the gradients once (`train.gather_once`). This needs 8 bytes per
parameter on each device besides its part of the state.
zero2: as zero1, but the gradients are summed after each micro-batch, which needs 4 bytes per parameter."""

_PARTS = (FSDP, SEQUENCE)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Mesh axes by logical axis. For each parameter the table is applied from top to bottom, and each mesh axis is used once."""

    matrices: Mapping[str, tuple[str, ...]]
    """Rules of parameters that map features to features (`axes.is_matrix`)."""
    vectors: Mapping[str, tuple[str, ...]]
    """Rules of all other parameters. They are less than 0.1 % of a model: dividing them saves no memory and costs a message each."""
    whole_if_uneven: bool = False
    """Replicate an axis whose size is not divisible, instead of raising an error."""


_BY_WIDTH = {
    # embedding, lm_head [v, e/F]; in_proj [2, e/F, h, p]; q_proj, k_proj, v_proj [e/F, h, p]; gate, up [e/F, f]; down [f, e/F];
    # out_proj, o_proj [h, p, e/F]
    axes.EMBED: _PARTS,
    # Parameters without the axis embed: b_proj, c_proj [h, p/F, n]; dt_down [h, p/F, r]
    axes.HEAD_DIM: _PARTS,
}
_BY_HEADS = {
    axes.VOCAB: (TENSOR,),  # embedding, lm_head [v/T, e]
    axes.MLP: (TENSOR,),  # gate, up [e, f/T]; down [f/T, e]
    axes.HEADS: (TENSOR,),  # q_proj [e, h/T, p]; o_proj [h/T, p, e]; q_scale [h/T, p]
    # k_proj, v_proj [e, g/T, p]; k_scale [g/T, p]; not divided if g < T, see _spec
    axes.KV_HEADS: (TENSOR,),
    # in_proj [2, e, h/T, p]; out_proj [h/T, p, e]; b_proj, c_proj [h/T, p, n]; dt_down [h/T, p, r]; dt_up [r, h/T];
    # conv [h/T, p, taps]; a_log, dt_bias, skip [h/T]
    axes.MAMBA_HEADS: (TENSOR,),
}

RULES: Mapping[Strategy, Rules] = {
    "fsdp": Rules(_BY_WIDTH, {}),
    "zero1": Rules(_BY_WIDTH, {}),
    "zero2": Rules(_BY_WIDTH, {}),
    "fsdp_tensor": Rules(_BY_WIDTH | _BY_HEADS, _BY_HEADS),
    # If the heads of a mixer are not divisible, every device computes the whole mixer. So any model decodes on any number of devices.
    "tensor": Rules(_BY_HEADS, _BY_HEADS, whole_if_uneven=True),
}


class ShardingError(PlamoError):
    """A parameter or batch cannot be divided over a mesh."""


def param_shardings(logical_axes: Any, abstract: Any, mesh: Mesh, strategy: Strategy) -> Any:
    """Return the sharding of each parameter.

    Args:
        logical_axes: Tree of the axis names of each parameter (`plamo2_jax.model.logical_axes`).
        abstract: Tree of the same structure whose leaves have shapes.

    Returns:
        Tree of NamedSharding.

    Raises:
        ShardingError: An axis is not divisible, or the strategy does not use the mesh axis `tensor`.
    """
    rules = RULES[strategy]
    if mesh.shape[TENSOR] > 1 and not any(TENSOR in row for row in rules.matrices.values()):
        raise ShardingError(
            f"the strategy {strategy!r} divides nothing over tensor={mesh.shape[TENSOR]}. Use fsdp_tensor, or tensor=1"
        )

    def place(path: tuple, names: axes.Axes, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(name, names, leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(place, logical_axes, abstract, is_leaf=axes.is_axes)


def _spec(path: str, names: axes.Axes, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    table = rules.matrices if axes.is_matrix(names) else rules.vectors
    entries: list[tuple[str, ...] | None] = [None] * len(names)
    used: set[str] = set()
    for name, mesh_axes in table.items():
        if name not in names or used & set(mesh_axes):
            continue
        position = names.index(name)
        size, parts = shape[position], math.prod(mesh.shape[axis] for axis in mesh_axes)
        # With fewer key/value heads than devices, several devices read the same head, so every device holds all heads. This costs little:
        # the 1B has one key/value head, and its k_proj and v_proj are a sixteenth of q_proj.
        if (name == axes.KV_HEADS and size < parts) or (rules.whole_if_uneven and size % parts):
            continue
        _check_divisible(f"parameter {path}: axis {name!r} of size {size}", size, mesh, mesh_axes)
        entries[position] = mesh_axes
        used.update(mesh_axes)
    return PartitionSpec(*entries)


def _check_divisible(what: str, size: int, mesh: Mesh, mesh_axes: tuple[str, ...]) -> None:
    if size % math.prod(mesh.shape[axis] for axis in mesh_axes):
        spelled = " × ".join(f"{axis}={mesh.shape[axis]}" for axis in mesh_axes)
        raise ShardingError(f"{what} is not divisible by {spelled} of the mesh ({_spell(mesh)})")


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, shape: tuple[int, int], accumulation: int = 1) -> NamedSharding:
    """Return the sharding of batch arrays [b, t]: rows over data × fsdp, tokens over sequence.

    Args:
        shape: b and t.
        accumulation: Number of micro-batches; the rows of each must be divisible.

    Raises:
        ShardingError: b / accumulation or t is not divisible.
    """
    for name, size, mesh_axes in (("b / accumulation", shape[0] // accumulation, ROWS), ("t", shape[1], (SEQUENCE,))):
        _check_divisible(f"the batch's {name} = {size}", size, mesh, mesh_axes)
    return NamedSharding(mesh, PartitionSpec(ROWS, SEQUENCE))


def process_part(sharding: NamedSharding, shape: tuple[int, int]) -> tuple[int, int]:
    """Return which part of a batch's rows this process provides: its index, and the number of parts.

    Processes whose devices hold the same rows (they differ in sequence or tensor) provide the same part.

    Raises:
        ShardingError: Processes hold overlapping but different rows.
    """
    held: dict[int, set[int]] = {}
    for device, (rows, _) in sharding.devices_indices_map(shape).items():
        held.setdefault(device.process_index, set()).add(rows.indices(shape[0])[0])
    parts = sorted({tuple(sorted(starts)) for starts in held.values()})
    if len(set(map(len, parts))) > 1 or len(set().union(*parts)) < sum(map(len, parts)):
        raise ShardingError(
            f"the devices of different processes hold overlapping but different rows on the mesh ({_spell(sharding.mesh)}): "
            "sequence × tensor must divide, or be divisible by, the number of devices of a process"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Return a tree of `jax.ShapeDtypeStruct` with the shapes and dtypes of one tree and the shardings of another."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, shardings)


def _spell(mesh: Mesh) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
