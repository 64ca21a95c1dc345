"""Bytes an XLA instruction moves to and from HBM."""

from __future__ import annotations

import dataclasses

from plamo2_jax.plan.hlo import Computation, Instruction, Module, hbm_bytes, tuple_elements

_RENAMES = ("bitcast", "get-tuple-element", "reshape")


def instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """What it reads of its operands and writes of its result, once each.

    A slice is what is read of an operand that is only sliced, and what is written of a result that is updated in place: a loop that walks
    over an array would otherwise be charged for all of it every round.
    """
    shapes = [computation[name].shape if name in computation else "" for name in instruction.operands]
    if instruction.op.endswith("-start"):
        # The result of a copy is a tuple of target, source and a flag; that of anything else of operands, target and flags.
        target = tuple_elements(instruction.shape)[0 if instruction.op == "copy-start" else 1]
        read = sum(map(hbm_bytes, shapes))
        if "slice" in instruction.op:
            read = min(read, hbm_bytes(_without_space(target)))
        return read + hbm_bytes(target)
    if instruction.op == "dynamic-update-slice":
        return _both(hbm_bytes(shapes[0]), 2 * hbm_bytes(shapes[1]))
    if instruction.op in ("dynamic-slice", "slice"):
        return hbm_bytes(instruction.shape) + min(hbm_bytes(shapes[0]), hbm_bytes(_without_space(instruction.shape)))
    called = instruction.called("calls") if instruction.op == "fusion" else None
    if called is None:
        return sum(map(hbm_bytes, shapes)) + hbm_bytes(instruction.shape)
    inner = _copies_in_place_as_renames(module, module.computations[called])
    parameters = {int(i.arguments): i for i in inner.values() if i.op == "parameter"}
    read = sum(_read(inner, parameters[index], shape) for index, shape in enumerate(shapes))
    return read + _written(inner, instruction)


def _copies_in_place_as_renames(module: Module, computation: Computation) -> Computation:
    """libtpu 0.0.50 changes the tiling of an array that is updated in place by a fusion of one copy, whose result is its operand: no byte
    moves.
    """

    def renames(instruction: Instruction) -> bool:
        if "output_to_operand_aliasing={{}: (0, {})}" not in instruction.attributes or instruction.op != "fusion":
            return False
        called = module.computations[instruction.called("calls")]
        return {i.op for i in called.values()} <= {"parameter", "copy", *_RENAMES}

    return {name: dataclasses.replace(i, op="bitcast") if renames(i) else i for name, i in computation.items()}


def _both(space: int, size: int) -> int:
    return size if space else 0


def _without_space(shape: str) -> str:
    return shape.replace("S(1)", "")


def _users(computation: Computation, name: str) -> list[Instruction]:
    users = []
    for instruction in computation.values():
        if name in instruction.operands:
            users += _users(computation, instruction.name) if instruction.op in _RENAMES else [instruction]
    return users


def _renamed(computation: Computation, name: str) -> str:
    """The value that a chain of renamings begins with."""
    while computation[name].op in _RENAMES:
        name = computation[name].operands[0]
    return name


def _read(computation: Computation, parameter: Instruction, shape: str) -> int:
    """Bytes read of a fusion's operand, whose shape outside tells where it lives."""
    whole = hbm_bytes(shape)
    if not whole:
        return 0
    read = 0
    for user in _users(computation, parameter.name):
        first = _renamed(computation, user.operands[0]) == parameter.name
        if user.op in ("dynamic-slice", "slice") and first:
            read += hbm_bytes(_without_space(user.shape))
        elif user.op == "dynamic-update-slice" and first:
            continue
        else:
            return whole
    return min(read, whole)


def _written(computation: Computation, fusion: Instruction) -> int:
    root = next(i for i in computation.values() if i.root)
    if root.op in _RENAMES:
        root = computation[_renamed(computation, root.name)]
    if root.op == "dynamic-update-slice":
        return _both(hbm_bytes(fusion.shape), hbm_bytes(_without_space(computation[root.operands[1]].shape)))
    return hbm_bytes(fusion.shape)
