"""Account for the HBM of one chip: arguments by kind, saved activations, gradients, temporaries; read out-of-memory errors."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from plamo2_jax.plan.hlo import Computation, Instruction, Module, hbm_bytes, tuple_elements

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# The compiler raises the first before it assigns buffers, the second after. Both include arguments.
_REFUSALS = (
    re.compile(rf"total memory required[^(]*\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


@dataclasses.dataclass(frozen=True)
class Overflow:
    """The compiler's error that a program does not fit into HBM; bytes of one chip."""

    needed: int
    available: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one chip in bytes."""

    available: int
    arguments: Mapping[str, int]
    """Bytes by kind (parameters, optimizer, batch, cache, …), without padding."""
    argument_bytes: int
    """Bytes of all arguments in the compiler's layout, with padding."""
    kept: int
    """Bytes of the activations that a loop over layers saves for the backward pass."""
    gradients: int
    """Bytes of the gradients, which a loop over layers or micro-batches fills."""
    temporary_bytes: int
    """Bytes of everything that exists only while the program runs, including `kept` and `gradients`. Buffers that are not alive at the same
    time share memory, so `kept + gradients` can be larger."""
    output_bytes: int
    """Bytes of outputs that do not reuse the buffer of an argument."""
    code_bytes: int

    @property
    def used(self) -> int:
        """Bytes at the peak."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, `used` and `other_temporaries`, for JSON."""
        return {**dataclasses.asdict(self), "used": self.used, "other_temporaries": self.other_temporaries}

    @property
    def other_temporaries(self) -> int:
        """Bytes of temporaries that are neither saved activations nor gradients."""
        return max(0, self.temporary_bytes - self.kept - self.gradients)


def parse_overflow(message: str) -> Overflow | None:
    """Return the bytes in an out-of-memory error of the compiler; None for any other error."""
    for pattern in _REFUSALS:
        if match := pattern.search(message):
            needed, unit, available, other = match.groups()
            return Overflow(round(float(needed) * _UNITS[unit]), round(float(available) * _UNITS[other]))
    return None


def chip_bytes(tree: Any) -> int:
    """Return the bytes that a tree of `jax.ShapeDtypeStruct`s with shardings takes on one device, without padding."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def memory_of(
    module: Module,
    statistics: Any,
    buffers: Mapping[str, int] | None,
    arguments: Mapping[str, int],
    parameter_shapes: Iterable[tuple[int, ...]],
    hbm: int,
) -> Memory:
    """Return the memory account of a compiled program.

    Args:
        statistics: `compiled.memory_analysis()`.
        buffers: `buffers.buffer_bytes` of the program; None: it is not known.
        arguments: bytes by kind.
        parameter_shapes: shapes of one chip's shards of the parameters, which distinguish gradients from activations.
        hbm: bytes of HBM that are available.
    """
    kept, gradients = carried(module, set(parameter_shapes))
    argument_bytes = statistics.argument_size_in_bytes
    output_bytes = statistics.output_size_in_bytes - statistics.alias_size_in_bytes
    # `temp_size_in_bytes` counts the gaps between buffers twice: programs with more of it than there is HBM compile.
    temporary_bytes = (
        statistics.temp_size_in_bytes
        if buffers is None
        else buffers["temporary_bytes"] + buffers["output_bytes"] - output_bytes
    )
    return Memory(
        hbm,
        dict(arguments),
        argument_bytes,
        kept,
        gradients,
        temporary_bytes,
        output_bytes,
        statistics.generated_code_size_in_bytes,
    )


def carried(module: Module, parameters: set[tuple[int, ...]]) -> tuple[int, int]:
    """Return the bytes of the arrays that loops fill slice by slice: saved activations, and gradients.

    Only the outermost two levels of loops count. Loops inside a layer, over chunks or blocks, fill small arrays that are freed with the
    layer. If several loops carry the same array, one of them fills it.
    """
    kept = gradients = 0
    for loop in _loops(module, module.entry, 2):
        body = module.computations[loop.called("body")]
        for index, shape in enumerate(tuple_elements(loop.shape)):
            filled = _filled(module, body, index)
            if filled and _dims(shape) in parameters:
                gradients += hbm_bytes(shape)
            elif filled and "transpose(" not in loop.op_name:
                kept += hbm_bytes(shape)
    return kept, gradients


def _loops(module: Module, name: str, depth: int) -> Iterable[Instruction]:
    for instruction in module.computations[name].values():
        if instruction.op == "while" and depth:
            yield instruction
            yield from _loops(module, instruction.called("body"), depth - 1)


def _filled(module: Module, body: Computation, index: int) -> bool:
    """Return whether each iteration of a loop writes a slice of this element of the loop's carry."""
    root = next(i for i in body.values() if i.root)
    if root.op != "tuple" or index >= len(root.operands):
        return False
    value = body.get(root.operands[index])
    while value is not None and value.op in ("bitcast", "copy-done", "copy", "get-tuple-element") and value.operands:
        value = body.get(value.operands[0])
    if value is not None and (inner := module.fused(value)) is not None:
        value = next(i for i in inner.values() if i.root)
        if value.op == "tuple":
            return any(inner[name].op == "dynamic-update-slice" for name in value.operands)
        while value.op == "bitcast":
            value = inner[value.operands[0]]
    return value is not None and value.op == "dynamic-update-slice"


def _dims(shape: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", shape[shape.index("[") : shape.index("]")]))
