"""Collectives of a compiled program: what each moves between chips, over which links, and how long the links are busy with it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.hlo import Computation, Instruction, Module, array_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Three spellings: numbers, a permuted range cut into groups, and axes of a mesh.
_GROUPS = re.compile(
    r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|\{\{.*?\}\}|mesh\[[^\]]*\](?:, device_ids=\(.*?\)(?= \{))? \{[^}]*\})"
)
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_CHOSEN = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\})\}")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a partition of the program runs."""

    slice: int
    coords: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Slice:
    """The chips of a program, by partition number."""

    chip: Chip
    places: tuple[Place, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each axis of one slice."""
        return tuple(max(c) + 1 for c in zip(*(place.coords for place in self.places), strict=True))

    def links(self, group: Sequence[int]) -> int:
        """Links of a chip that a group can keep busy at once: two for each axis of the torus that it fills, if the axis is a ring."""
        count = 0
        for axis, size in enumerate(self.shape):
            spanned = len({self.places[i].coords[axis] for i in group})
            if spanned > 1:
                count += 2 if spanned == size and size % self.chip.torus_multiple == 0 else 1
        return count or 1

    def slices(self, group: Sequence[int]) -> int:
        """Slices that a group extends over."""
        return len({self.places[i].slice for i in group})


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective; bytes and seconds are of one chip and one execution."""

    kind: str
    name: str
    op_name: str
    times: int
    group: int
    """Chips that take part together."""
    links: int
    """Links of a chip that it can use; 0: it goes between slices."""
    wire_bytes: float
    """That a chip sends."""
    seconds: float
    """That its links are busy, at their published speed."""
    asynchronous: bool
    """Whether the program computes something else meanwhile; else it waits."""


def collectives(module: Module, topology: Slice) -> list[Collective]:
    """All collectives that a program executes, those inside fusions too."""
    found = []
    for instruction, computation, times in module.executed():
        for inner, scope in _inside(module, instruction, computation):
            kind = _kind(inner)
            if kind is not None and not _continues(inner, scope):
                kind = "reduce-scatter" if kind == "all-reduce" and _scatters(scope) else kind
                found.append(_collective(kind, inner, scope, times, topology))
    return found


def _scatters(scope: Computation) -> bool:
    """Whether a fusion keeps only a slice of a sum over all: what XLA makes of a scatter on TPU, and runs as one."""
    return any(i.root and i.op == "dynamic-slice" for i in scope.values())


def _continues(instruction: Instruction, scope: Computation) -> bool:
    """Whether it is one of the later parts of a collective that XLA runs in pieces beside other operations: it names it in every piece."""
    if "chain_id=" not in instruction.attributes:
        return False
    return not any('custom_call_target="AsyncCollectiveStart"' in other.attributes for other in scope.values())


def is_collective(module: Module, instruction: Instruction) -> bool:
    """Whether the instruction does nothing but communicate, which the links are charged with."""
    if _kind(instruction) is not None:
        return True
    called = instruction.called("calls") if instruction.op == "fusion" else None
    inner = module.computations[called].values() if called else ()
    work = ("fusion", "convolution", "dot", "reduce", "while", "custom-call")
    communicates = any(_kind(i) is not None for i in inner)
    return communicates and not any(i.op in work and "AsyncCollective" not in i.attributes for i in inner)


def _inside(module: Module, instruction: Instruction, scope: Computation) -> Iterator[tuple[Instruction, Computation]]:
    called = instruction.called("calls") if instruction.op == "fusion" else None
    if called is None:
        yield instruction, scope
        return
    inner = module.computations[called]
    for each in inner.values():
        yield from _inside(module, each, inner)


def _kind(instruction: Instruction) -> str | None:
    op = instruction.op.removesuffix("-start")
    return op if op in KINDS else None


def _collective(kind: str, instruction: Instruction, scope: Computation, times: int, topology: Slice) -> Collective:
    operands = sum(array_bytes(scope[name].shape) for name in instruction.operands if name in scope)
    if kind == "collective-permute":
        group = max(_pairs(instruction), key=lambda pair: topology.slices(pair), default=[0])
        wire, links = float(operands), 1
    else:
        group = replica_group(instruction.attributes, len(topology.places))
        wire, links = wire_bytes(kind, operands, len(group)), topology.links(group)
    if topology.slices(group) > 1:
        # Between slices the data centre's network is what limits, and only what crosses it takes that road.
        across = topology.slices(group)
        within = len(group) // across
        wire = wire_bytes(kind, operands, across) / (within if kind != "all-gather" else 1)
        return _timed(kind, instruction, times, len(group), 0, wire, topology.chip.dcn_bytes_per_second)
    speed = links * topology.chip.link_bytes_per_second
    return _timed(kind, instruction, times, len(group), links, wire, speed)


def _timed(kind, instruction, times, group, links, wire, speed) -> Collective:
    asynchronous = instruction.op.endswith("-start") or "chain_id=" in instruction.attributes
    return Collective(
        kind, instruction.name, instruction.op_name, times, group, links, wire, wire / speed, asynchronous
    )


def wire_bytes(kind: str, operand_bytes: float, group: int) -> float:
    """Bytes that each of `group` chips sends when they pass data around a ring.

    A gather's operand is one part of the whole and is sent on n - 1 times; a scatter's is the whole, of which all parts but one are sent;
    a reduction to everyone is a scatter and a gather. To exchange all with all, data go n/4 links far on average in a ring of n.
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
    """The partitions of the first group; the others are like it. No groups: all partitions."""
    match = _GROUPS.search(attributes)
    if match is None and "replica_groups=" in attributes and "replica_groups={}" not in attributes:
        raise ValueError(f"groups of a collective in an unknown spelling: {attributes[:200]}")
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
    """Numbers in the order of `[2,4]T(1,0)`: counted in that shape, read after the transposition."""
    dims, _, permutation = text.partition("T")
    sizes = _numbers(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_numbers(permutation)) if permutation else ids).ravel()


def _mesh_group(text: str) -> list[int]:
    """The first group along axes of a mesh, `mesh['a'=2,'b'=8] {'b'}`, or along a part of an axis, `{'b':(2)4}`: 4 behind 2.

    Devices are counted through the mesh, or listed: `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.
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
