"""Read the program that XLA compiled, as `compiled.as_text()` prints it: instructions, their shapes in memory, loops and trip counts."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_BITS = re.compile(r"\d+")
_COMMENT = re.compile(r"/\*.*?\*/")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_ENDS = re.compile(r'\}(?:, execution_thread="(\w+)")?')
_NO_ESTIMATE = 2**63 - 1
"""What libtpu 0.0.50 writes where its cost model says nothing, as of work on the SparseCore; 0.0.42 wrote no estimate there."""
# Instructions that only name or rename a buffer, or whose work another instruction is charged with.
FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "opt-barrier",
        "partition-id",
        "replica-id",
    )
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    """As printed, with layout: `f32[8,128]{1,0:T(8,128)S(1)}`, or a tuple of such."""
    op: str
    operands: tuple[str, ...]
    arguments: str
    """What stands between the parentheses: operands, or a constant's value."""
    attributes: str
    root: bool
    thread: str = ""
    """What runs it, where it is not the TensorCore: "sparsecore"."""

    def called(self, attribute: str) -> str | None:
        """Name of the computation in an attribute, such as calls, body, condition."""
        match = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return match and match[1]

    @property
    def estimated_cycles(self) -> int | None:
        """What XLA's cost model says of the instruction; None where it says nothing."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match and int(match[1]) != _NO_ESTIMATE else None

    @property
    def vmem_bytes(self) -> int:
        """Bytes of vector memory the instruction takes while it runs, besides operands that live there."""
        used = re.search(r'"used_scoped_memory_configs":\[(.*?)\]', self.attributes)
        sizes = re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', used[1] if used else "")
        return sum(map(int, sizes))

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def is_kernel(self) -> bool:
        """Whether it is a Pallas TPU kernel."""
        return self.op == "custom-call" and 'custom_call_target="tpu_custom_call"' in self.attributes


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str

    def executed(self) -> Iterator[tuple[Instruction, Computation, int]]:
        """Every instruction that runs, the computation it stands in and how often it runs; the inside of fusions is their affair.

        Of a conditional's branches the one with the most instructions is taken.
        """
        yield from self._walk(self.entry, 1)

    def _walk(self, name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.op == "while":
                yield from self._walk(instruction.called("body"), times * self.trip_count(instruction, computation))
            elif instruction.op == "conditional":
                branches = _REFERENCE.findall(re.search(r"branch_computations=\{(.*?)\}", instruction.attributes)[1])
                yield from self._walk(max(branches, key=lambda branch: len(self.computations[branch])), times)
            elif instruction.op in ("call", "call-start", "async-start"):
                yield from self._walk(instruction.called("to_apply") or instruction.called("calls"), times)
            elif instruction.op not in FREE and not instruction.op.endswith(("-done", "-update")):
                yield instruction, computation, times

    def trip_count(self, loop: Instruction, computation: Computation) -> int:
        """Rounds of a `while`: as XLA states it, or else the constant that its counter, which begins at zero, is compared with.

        Raises:
            ValueError: neither is there.
        """
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match[1])
        condition = self.computations[loop.called("condition")]
        for comparison in condition.values():
            if comparison.op == "compare" and "direction=LT" in comparison.attributes:
                bound = self._constant(condition[comparison.operands[1]], loop, computation)
                if bound is not None:
                    return bound
        raise ValueError(f"the trip count of the loop {loop.name} ({loop.op_name}) is not in the program")

    def _constant(self, value: Instruction, loop: Instruction, computation: Computation) -> int | None:
        """A constant, written in the condition or carried into the loop."""
        if value.op == "get-tuple-element":
            carried = computation[loop.operands[0]]
            if carried.op == "tuple":
                index = int(re.search(r"index=(\d+)", value.attributes)[1])
                value = computation[carried.operands[index]]
        return int(value.arguments) if value.op == "constant" else None


def parse_module(text: str) -> Module:
    """The program of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry = current = name = None
    for line in _whole_lines(text):
        if line.endswith("{") and not line.startswith(" ") and (match := re.match(r"(ENTRY )?%([\w.\-]+) \(", line)):
            name = match[2]
            current = computations[name] = {}
            entry = name if match[1] else entry
        elif line.startswith("  ") and current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
        elif _ENDS.fullmatch(line):
            if current and (thread := _ENDS.fullmatch(line)[1]):
                computations[name] = {
                    key: dataclasses.replace(instruction, thread=thread) for key, instruction in current.items()
                }
            current = None
    if entry is None:
        raise ValueError("not a compiled program: it has no entry computation")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, of which an instruction has one each: attributes that jax 0.12 gives a kernel are printed over several."""
    parts: list[str] = []
    for line in text.splitlines():
        continues = parts and parts[0].startswith("  ") and not line.startswith("  ") and not _ENDS.fullmatch(line)
        if not continues and parts:
            yield " ".join(parts)
            parts = []
        parts.append(line)
    yield " ".join(parts)


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"  (ROOT )?%([\w.\-]+) = ", line)
    if not match:
        return None
    rest = _COMMENT.sub("", line[match.end() :])
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    return Instruction(
        match[2],
        shape,
        rest[:opening],
        tuple(_REFERENCE.findall(arguments)),
        arguments,
        rest[closing + 1 :],
        bool(match[1]),
    )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def tuple_elements(shape: str) -> list[str]:
    """The elements of a tuple's shape; an element that is a tuple itself stays whole."""
    elements, depth = [""], 0
    for piece in re.split(r"(, |[(){}\[\]])", shape[1:-1]):
        depth += (piece in tuple("([{")) - (piece in tuple(")]}"))
        if piece == ", " and not depth:
            elements.append("")
        else:
            elements[-1] += piece
    return elements


def hbm_bytes(shape: str) -> int:
    """Bytes that the arrays of a shape take in HBM, padding of the tiled layout included; 0 for those that live elsewhere."""
    return sum(map(_array_bytes, _ARRAY.findall(shape)))


def array_bytes(shape: str) -> int:
    """Bytes of the arrays of a shape, wherever they live."""
    return hbm_bytes(re.sub(r"S\(\d+\)", "", shape))


def _array_bytes(array: tuple[str, str, str]) -> int:
    dtype, dims, layout = array
    # S(0), HBM, is not printed; S(1) is VMEM.
    if re.search(r"S\([1-9]\d*\)", layout):
        return 0
    sizes = [int(d) for d in dims.split(",") if d]
    order, _, tiling = layout.partition(":")
    minor_to_major = [int(d) for d in order.split(",") if d]
    sizes = [sizes[d] for d in reversed(minor_to_major)] if minor_to_major else sizes
    if tile := re.match(r"T\(([\d,]+)\)", tiling):
        tile_sizes = [int(d) for d in tile[1].split(",")]
        for position, size in enumerate(reversed(tile_sizes), 1):
            if position <= len(sizes):
                sizes[-position] = math.ceil(sizes[-position] / size) * size
    return (
        math.prod(sizes)
        * (1 if dtype == "pred" else max(int(_BITS.search(dtype)[0]), 1))
        * (8 if dtype == "pred" else 1)
        // 8
    )
