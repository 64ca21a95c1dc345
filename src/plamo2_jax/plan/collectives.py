"""Read the collectives of a compiled program: the bytes that each moves between chips, its links, and the time at their bandwidth."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.hlo import Computation, Instruction, Module, array_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Three notations: lists of numbers, a permuted range cut into groups, and axes of a mesh.
_GROUPS = re.compile(
    r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|\{\{.*?\}\}|mesh\[[^\]]*\](?:, device_ids=\(.*?\)(?= \{))? \{[^}]*\})"
)
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_CHOSEN = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\})\}")


@dataclasses.dataclass(frozen=True)
class Place:
    """The chip on which a partition of the program runs."""

    slice: int
    """Number of the slice."""
    coords: tuple[int, ...]
    """Coordinates within the slice."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """The chips of a program, in the order of their partition numbers."""

    chip: Chip
    places: tuple[Place, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of chips along each axis of one slice."""
        return tuple(max(c) + 1 for c in zip(*(place.coords for place in self.places), strict=True))

    def links(self, group: Sequence[int]) -> int:
        """Return the links of a chip that a group can use at once: two for each axis that it fills if the axis is a ring, else one."""
        count = 0
        for axis, size in enumerate(self.shape):
            spanned = len({self.places[i].coords[axis] for i in group})
            if spanned > 1:
                count += 2 if spanned == size and size % self.chip.torus_multiple == 0 else 1
        return count or 1

    def slices(self, group: Sequence[int]) -> int:
        """Return the number of slices that a group spans."""
        return len({self.places[i].slice for i in group})


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation. Bytes and seconds are for one chip and one execution."""

    kind: str
    name: str
    op_name: str
    times: int
    """Number of executions."""
    group: int
    """Number of chips that take part."""
    links: int
    """Links of a chip that it can use; 0 for a collective between slices."""
    wire_bytes: float
    """Bytes that a chip sends."""
    seconds: float
    """Seconds that the links take at their published bandwidth."""
    asynchronous: bool
    """Whether the program can compute while the collective runs; otherwise the core waits for all of it."""


def collectives(module: Module, topology: Slice) -> list[Collective]:
    """Return all collectives that a program executes, including the collectives inside fusions."""
    found = []
    for instruction, computation, times in module.executed():
        for inner, scope in inner_instructions(module, instruction, computation):
            kind = _kind(inner)
            if kind is not None and not _continues(inner, scope):
                kind = "reduce-scatter" if kind == "all-reduce" and _scatters(scope) else kind
                found.append(_collective(kind, inner, scope, times, topology))
    return found


def _scatters(scope: Computation) -> bool:
    """Return whether a fusion keeps only a slice of an all-reduce. XLA writes a reduce-scatter on TPU this way, and runs it as one."""
    return any(i.root and i.op == "dynamic-slice" for i in scope.values())


def _continues(instruction: Instruction, scope: Computation) -> bool:
    """Return whether the instruction is a later piece of a collective that XLA overlaps with other operations.

    Each piece names the collective, and only the first is in a computation with AsyncCollectiveStart.
    """
    first = any('custom_call_target="AsyncCollectiveStart"' in other.attributes for other in scope.values())
    return "chain_id=" in instruction.attributes and not first


def is_collective(module: Module, instruction: Instruction) -> bool:
    """Return whether the instruction only communicates. Its time is counted for the links, not for the core."""
    if _kind(instruction) is not None:
        return True
    inner = (module.fused(instruction) or {}).values()
    work = ("fusion", "convolution", "dot", "reduce", "while", "custom-call")
    communicates = any(_kind(i) is not None for i in inner)
    return communicates and not any(i.op in work and "AsyncCollective" not in i.attributes for i in inner)


def inner_instructions(
    module: Module, instruction: Instruction, scope: Computation
) -> Iterator[tuple[Instruction, Computation]]:
    """Yield the instructions of a fusion, also of fusions in it, each with its computation. Any other instruction is its own."""
    inner = module.fused(instruction)
    if inner is None:
        yield instruction, scope
        return
    for each in inner.values():
        yield from inner_instructions(module, each, inner)


def _kind(instruction: Instruction) -> str | None:
    op = instruction.op.removesuffix("-start")
    return op if op in KINDS else None


def _collective(kind: str, instruction: Instruction, scope: Computation, times: int, topology: Slice) -> Collective:
    operands = sum(array_bytes(scope[name].shape) for name in instruction.operands if name in scope)
    if kind == "collective-permute":
        group = max(_pairs(instruction), key=topology.slices, default=[0])
        wire, links = float(operands), 1
    else:
        group = replica_group(instruction.attributes, len(topology.places))
        wire, links = wire_bytes(kind, operands, len(group)), topology.links(group)
    speed = links * topology.chip.link_bytes_per_second
    if (across := topology.slices(group)) > 1:
        # Between slices the data center network is the limit, and only the bytes that cross it count.
        within = len(group) // across
        wire = wire_bytes(kind, operands, across) / (within if kind != "all-gather" else 1)
        links, speed = 0, topology.chip.dcn_bytes_per_second
    name, op_name = instruction.name, instruction.op_name
    asynchronous = (
        instruction.op.endswith("-start") or "chain_id=" in instruction.attributes or bool(instruction.thread)
    )
    return Collective(kind, name, op_name, times, len(group), links, wire, wire / speed, asynchronous)


def wire_bytes(kind: str, operand_bytes: float, group: int) -> float:
    """Return the bytes that each chip sends when n = `group` chips pass data around a ring.

    all-gather: the operand is one shard, and n - 1 shards are sent. reduce-scatter: the operand is the whole array, and all shards but one
    are sent. all-reduce: a reduce-scatter and an all-gather. all-to-all: data travel over n/4 links on average.
    """
    n = group
    if n <= 1:
        return 0.0
    factor = {
        "all-gather": n - 1,
        "reduce-scatter": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "all-to-all": max((n - 1) / n, n / 4),
        "ragged-all-to-all": max((n - 1) / n, n / 4),
    }
    return operand_bytes * factor.get(kind, 1.0)


def replica_group(attributes: str, partitions: int) -> list[int]:
    """Return the partitions of the first group. The other groups have the same form. Without groups, return all partitions.

    Raises:
        PlamoError: the groups are in an unknown notation.
    """
    match = _GROUPS.search(attributes)
    if match is None and "replica_groups=" in attributes and "replica_groups={}" not in attributes:
        raise PlamoError(f"the replica groups of a collective are in an unknown notation: {attributes[:200]}")
    if match is None or match[1] == "{{}}":
        return list(range(partitions))
    text = match[1]
    if text.startswith("mesh"):
        return _mesh_group(text)
    if text.startswith("{"):
        return [int(n) for n in re.findall(r"\d+", text[: text.index("}")])]
    shape, _, order = text.partition("<=")
    return _iota(order).reshape(_numbers(shape))[0].tolist()


def _iota(text: str) -> np.ndarray:
    """Return the numbers of an iota such as `[2,4]T(1,0)`: count in that shape, transpose, flatten."""
    dims, _, permutation = text.partition("T")
    sizes = _numbers(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_numbers(permutation)) if permutation else ids).ravel()


def _mesh_group(text: str) -> list[int]:
    """Return the first group along mesh axes, `mesh['a'=2,'b'=8] {'b'}`, or along a part of an axis, `{'b':(2)4}`.

    The part means: the axis is split into 2 × 4 × the rest, and the group is along the 4. Devices are numbered in the order of the mesh, or
    listed: `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.
    """
    mesh, _, chosen = text.rpartition("{")
    mesh, _, listed = mesh.partition("device_ids=")
    sizes = {name: int(size) for name, size in _AXIS.findall(mesh)}
    ids = np.arange(math.prod(sizes.values()))
    if listed:
        ids = _iota(listed) if "[" in listed else np.array(_numbers(listed))
    ids = ids.reshape(tuple(sizes.values()))
    picks = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in _CHOSEN.findall(chosen)}
    for axis, name in enumerate(sizes):
        before, size = picks.get(name, (1, 1))
        behind = sizes[name] // (before * size)
        ids = ids.take(np.arange(size) * behind, axis=axis)
    return ids.ravel().tolist()


def _pairs(instruction: Instruction) -> list[list[int]]:
    match = _PAIRS.search(instruction.attributes)
    return [_numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", match[1])] if match else []


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
