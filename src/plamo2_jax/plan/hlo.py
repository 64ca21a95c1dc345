"""Parse a compiled program, as `compiled.as_text()` prints it: instructions, their shapes in memory, loops and trip counts."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from plamo2_jax.errors import PlamoError

_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_BITS = re.compile(r"\d+")
_COMMENT = re.compile(r"/\*.*?\*/")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_ENDS = re.compile(r'\}(?:, execution_thread="(\w+)")?')
# libtpu 0.0.50 writes this where its cost model has no estimate, such as for the SparseCore. libtpu 0.0.42 writes nothing there.
_NO_ESTIMATE = 2**63 - 1
# Instructions that only name or rename a buffer, and instructions that take no time.
_BUFFER_NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"}
_FREE = _BUFFER_NAMES | {"after-all", "partition-id", "replica-id"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation."""

    name: str
    shape: str
    """Shape as printed, with its layout, such as `f32[8,128]{1,0:T(8,128)S(1)}`, or a tuple of shapes."""
    op: str
    operands: tuple[str, ...]
    arguments: str
    """Text between the parentheses: operands, the value of a constant, or the index of a parameter."""
    attributes: str
    root: bool
    """Whether it is the result of its computation."""
    thread: str = ""
    """`sparsecore` if the SparseCore runs it, empty for the TensorCore."""

    def called(self, attribute: str) -> str | None:
        """Return the name of the computation in an attribute such as calls, body or condition; None if there is none."""
        match = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return match and match[1]

    @property
    def estimated_cycles(self) -> int | None:
        """Cycles by XLA's cost model; None if it has no estimate."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match and int(match[1]) != _NO_ESTIMATE else None

    @property
    def vmem_bytes(self) -> int:
        """Bytes of vector memory that it needs while it runs, without operands that are stored there."""
        used = re.search(r'"used_scoped_memory_configs":\[(.*?)\]', self.attributes)
        sizes = re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', used[1] if used else "")
        return sum(map(int, sizes))

    @property
    def op_name(self) -> str:
        """The JAX operation that it comes from, with the path of modules and transformations."""
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
    data_dependent_trips: int | None = None
    """Trip count of loops whose end depends on data; None: such a loop is an error."""

    def fused(self, instruction: Instruction) -> Computation | None:
        """Return the computation of a fusion; None for any other instruction."""
        return self.computations[instruction.called("calls")] if instruction.op == "fusion" else None

    def executed(self) -> Iterator[tuple[Instruction, Computation, int]]:
        """Yield each instruction that runs, its computation, and its number of executions.

        A fusion is one instruction. For a conditional, only the branch with the most instructions counts.
        """
        yield from self._walk(self.entry, 1)

    def _walk(self, name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.op == "while":
                yield from self._walk(instruction.called("body"), times * self.trip_count(instruction, computation))
            elif instruction.op == "conditional":
                yield from self._walk(self.longest_branch(instruction), times)
            elif instruction.op in ("call", "call-start", "async-start"):
                yield from self._walk(self.callee(instruction), times)
            elif instruction.op not in _FREE and not instruction.op.endswith(("-done", "-update")):
                yield instruction, computation, times

    def longest_branch(self, conditional: Instruction) -> str:
        """Return the name of the branch of a conditional with the most instructions."""
        branches = _REFERENCE.findall(re.search(r"branch_computations=\{(.*?)\}", conditional.attributes)[1])
        return max(branches, key=lambda branch: len(self.computations[branch]))

    def callee(self, call: Instruction) -> str:
        """Return the name of the computation that a call runs."""
        return call.called("to_apply") or call.called("calls")

    def trip_count(self, loop: Instruction, computation: Computation) -> int:
        """Return the trip count of a `while`: the count that XLA states, or the constant with which the counter (from 0) is compared.

        Raises:
            PlamoError: the program has neither, and `data_dependent_trips` is None.
        """
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match[1])
        condition = self.computations[loop.called("condition")]
        for comparison in condition.values():
            if comparison.op == "compare" and "direction=LT" in comparison.attributes:
                bound = self._constant(condition[comparison.operands[1]], loop, computation)
                if bound is not None:
                    return bound
        if self.data_dependent_trips is not None:
            return self.data_dependent_trips
        raise PlamoError(f"the trip count of the loop {loop.name} ({loop.op_name}) is not in the program")

    def _constant(self, value: Instruction, loop: Instruction, computation: Computation) -> int | None:
        """Return the value of a constant in the condition, or of a constant that is carried into the loop; None if it is neither."""
        if value.op == "get-tuple-element":
            carried = computation[loop.operands[0]]
            if carried.op == "tuple":
                index = int(re.search(r"index=(\d+)", value.attributes)[1])
                value = computation[carried.operands[index]]
        return int(value.arguments) if value.op == "constant" else None


def parse_module(text: str) -> Module:
    """Parse the text of `compiled.as_text()`.

    Raises:
        PlamoError: the text is not a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry = current = name = None
    for line in _whole_lines(text):
        if line.endswith("{") and not line.startswith(" ") and (match := re.match(r"(ENTRY )?%([\w.\-]+) \(", line)):
            name = match[2]
            current = computations[name] = {}
            entry = name if match[1] else entry
        elif line.startswith("  ") and current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
        elif end := _ENDS.fullmatch(line):
            if current and end[1]:
                computations[name] = {key: dataclasses.replace(each, thread=end[1]) for key, each in current.items()}
            current = None
    if entry is None:
        raise PlamoError("not a compiled program: it has no entry computation")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Yield one line for each instruction. jax 0.12 prints the attributes of some kernels over several lines."""
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
    """Return the index of the closing parenthesis for the parenthesis at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index
    raise PlamoError(f"a parenthesis is not closed in {text[:80]!r}")


def tuple_elements(shape: str) -> list[str]:
    """Return the shapes of a tuple's elements. A nested tuple is one element."""
    elements, depth = [""], 0
    for piece in re.split(r"(, |[(){}\[\]])", shape[1:-1]):
        depth += (piece in tuple("([{")) - (piece in tuple(")]}"))
        if piece == ", " and not depth:
            elements.append("")
        else:
            elements[-1] += piece
    return elements


def hbm_bytes(shape: str) -> int:
    """Return the bytes of the arrays of a shape that are in HBM, with the padding of tiles. Arrays in other memories count as 0."""
    return sum(map(_array_bytes, _ARRAY.findall(shape)))


def array_bytes(shape: str) -> int:
    """Return the bytes of the arrays of a shape, in any memory, with the padding of tiles."""
    return hbm_bytes(re.sub(r"S\(\d+\)", "", shape))


def _array_bytes(array: tuple[str, str, str]) -> int:
    dtype, dims, layout = array
    # S(0) is HBM and is not printed; S(1) is VMEM.
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
    bits = 8 if dtype == "pred" else max(int(_BITS.search(dtype)[0]), 1)
    return math.prod(sizes) * bits // 8
