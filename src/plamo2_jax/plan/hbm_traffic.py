"""Count the bytes that an XLA instruction reads from and writes to HBM."""

from __future__ import annotations

import dataclasses

from plamo2_jax.plan.hlo import Computation, Instruction, Module, hbm_bytes, tuple_elements

_RENAMES = ("bitcast", "get-tuple-element", "reshape")
_READS_OF_PARTS = ("dynamic-slice", "slice", "gather")
# Operations that update their first operand in place, and the operand that holds the update.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


def instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Return the HBM bytes of one execution: an instruction reads each operand once and writes its result once.

    If an operand is only sliced or gathered from, only the slice counts; if a result is updated in place, only the update counts. Otherwise
    a loop over the slices of an array would be charged for the whole array in every iteration.
    """
    shapes = [computation[name].shape if name in computation else "" for name in instruction.operands]
    if instruction.op.endswith("-start"):
        # The result of copy-start is a tuple (target, source, flag); the result of any other -start is (operands, target, flags...).
        target = tuple_elements(instruction.shape)[0 if instruction.op == "copy-start" else 1]
        read = sum(map(hbm_bytes, shapes))
        if "slice" in instruction.op:
            read = min(read, hbm_bytes(_without_space(target)))
        return read + hbm_bytes(target)
    if instruction.op in _UPDATES:
        return 2 * hbm_bytes(shapes[_UPDATES[instruction.op]]) if hbm_bytes(shapes[0]) else 0
    if instruction.op in _READS_OF_PARTS:
        return hbm_bytes(instruction.shape) + min(hbm_bytes(shapes[0]), hbm_bytes(_without_space(instruction.shape)))
    fused = module.fused(instruction)
    if fused is None:
        return sum(map(hbm_bytes, shapes)) + hbm_bytes(instruction.shape)
    inner = _copies_in_place_as_renames(module, fused)
    parameters = {int(i.arguments): i for i in inner.values() if i.op == "parameter"}
    read = sum(_read(module, inner, parameters[index], shape) for index, shape in enumerate(shapes))
    return read + _written(inner, instruction)


def _copies_in_place_as_renames(module: Module, computation: Computation) -> Computation:
    """Replace copies in place by bitcasts, because they move no byte.

    libtpu 0.0.50 changes the tiling of an array that is updated in place by a fusion of one copy, whose result is its operand.
    """

    def renames(instruction: Instruction) -> bool:
        if "output_to_operand_aliasing={{}: (0, {})}" not in instruction.attributes or instruction.op != "fusion":
            return False
        return {i.op for i in module.fused(instruction).values()} <= {"parameter", "copy", *_RENAMES}

    return {name: dataclasses.replace(i, op="bitcast") if renames(i) else i for name, i in computation.items()}


def _without_space(shape: str) -> str:
    return shape.replace("S(1)", "")


def _users(computation: Computation, name: str) -> list[Instruction]:
    users = []
    for instruction in computation.values():
        if name in instruction.operands:
            users += _users(computation, instruction.name) if instruction.op in _RENAMES else [instruction]
    return users


def _renamed(computation: Computation, name: str) -> str:
    """Return the name of the value at the start of a chain of renames."""
    while computation[name].op in _RENAMES:
        name = computation[name].operands[0]
    return name


def _read(module: Module, computation: Computation, parameter: Instruction, shape: str) -> int:
    """Return the bytes that a fusion reads from an operand. `shape`, the operand's shape outside the fusion, names its memory."""
    whole = hbm_bytes(shape)
    if not whole:
        return 0
    read = 0
    for user in _users(computation, parameter.name):
        first = _renamed(computation, user.operands[0]) == parameter.name
        if user.op in _READS_OF_PARTS and first:
            read += hbm_bytes(_without_space(user.shape))
        elif nested := module.fused(user):
            # A fusion within the fusion, such as one that slices the saved activations of a layer.
            places = [str(i) for i, name in enumerate(user.operands) if _renamed(computation, name) == parameter.name]
            inner = [i for i in nested.values() if i.op == "parameter" and i.arguments in places]
            read += sum(_read(module, nested, each, shape) for each in inner)
        elif user.op not in _UPDATES or not first:
            return whole
    return min(read, whole)


def _written(computation: Computation, fusion: Instruction) -> int:
    root = next(i for i in computation.values() if i.root)
    root = computation[_renamed(computation, root.name)]
    whole = hbm_bytes(fusion.shape)
    if whole and root.op in _UPDATES:
        return min(whole, hbm_bytes(_without_space(computation[root.operands[_UPDATES[root.op]]].shape)))
    return whole
