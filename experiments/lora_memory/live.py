"""The arrays that a compiled program keeps in HBM at its peak, besides its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from plamo2_jax.plan.hlo import Computation, Instruction, Module, hbm_bytes, tuple_elements

# Instructions whose result is the buffer of their operands.
_RENAMES = {"bitcast", "get-tuple-element", "tuple", "parameter", "constant", "opt-barrier", "conditional", "call"}
# Instructions that write into the buffer of an operand of the same shape.
_IN_PLACE = {"while", "dynamic-update-slice"}


@dataclasses.dataclass(frozen=True)
class Live:
    """An array in HBM."""

    bytes: int
    shape: str
    op: str
    source: str
    """JAX operation with its path; empty for a copy that the compiler added."""


def peak_arrays(module: Module, name: str | None = None) -> list[Live]:
    """Return the arrays that are alive when a computation and the loops in it hold the most bytes, in the order of the schedule.

    The text of a program does not say which arrays share a buffer. An asynchronous copy counts as one more array, so the sum is a little
    above the compiler's own peak.
    """
    computation = module.computations[name or module.entry]
    buffers = _buffers(module, computation)
    last = {}
    for position, each in enumerate(computation.values()):
        for used in (each.name, *each.operands):
            last.update(dict.fromkeys(buffers.get(used, ()), position))
    best: list[Live] = []
    alive: dict[str, Live] = {}
    for position, each in enumerate(computation.values()):
        if each.name in buffers.get(each.name, ()):
            alive[each.name] = Live(_own_bytes(each), each.shape, each.op, each.op_name)
        inner = peak_arrays(module, each.called("body")) if each.op == "while" else []
        if total(alive.values()) + total(inner) > total(best):
            best = [*alive.values(), *inner]
        alive = {key: array for key, array in alive.items() if last[key] > position}
    return [array for array in best if array.bytes]


def total(arrays: Iterable[Live]) -> int:
    """Return the bytes of some arrays."""
    return sum(array.bytes for array in arrays)


def _buffers(module: Module, computation: Computation) -> dict[str, set[str]]:
    """Return, for each instruction, the instructions that allocate the buffers of its result. Arguments have none."""
    buffers: dict[str, set[str]] = {}
    for each in computation.values():
        operands = set().union(*(buffers.get(name, set()) for name in each.operands))
        if each.op in _RENAMES or each.op in _IN_PLACE or each.op.endswith("-done"):
            buffers[each.name] = operands
        elif _updates(module, each):
            buffers[each.name] = {name for name in operands if _own_bytes(computation[name]) == _own_bytes(each)}
        else:
            buffers[each.name] = {each.name}
    return buffers


def _updates(module: Module, instruction: Instruction) -> bool:
    """Return whether a fusion writes a slice of an operand in place."""
    fused = module.fused(instruction)
    if fused is None:
        return False
    root = next(each for each in fused.values() if each.root)
    roots = [fused[name] for name in root.operands] if root.op == "tuple" else [root]
    return any(_renamed(fused, each).op == "dynamic-update-slice" for each in roots)


def _renamed(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.op == "bitcast":
        instruction = computation[instruction.operands[0]]
    return instruction


def _own_bytes(instruction: Instruction) -> int:
    """Return the bytes that an instruction allocates in HBM."""
    if not instruction.op.endswith("-start"):
        return hbm_bytes(instruction.shape)
    # A copy-start returns (result, operand, context), the other starts (operands, results, context).
    elements = tuple_elements(instruction.shape)
    return sum(map(hbm_bytes, elements[:1] if instruction.op == "copy-start" else elements[1:]))
