"""Costs of operations, from compiled programs, and estimates for the operations of a program without machine code.

libtpu chooses the tiles of an operation, and with them its cycles, when it generates the machine code. This takes about 95 % of a
compilation. Programs of one model on different meshes share most operations, so a sweep takes their cycles from programs that it has
compiled completely.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from plamo2_jax.plan.attention_blocks import computed_shares
from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.collectives import inner_instructions, is_collective
from plamo2_jax.plan.hbm_traffic import instruction_bytes
from plamo2_jax.plan.hlo import Computation, Instruction, Module, array_bytes
from plamo2_jax.plan.roofline import Operation, estimate_operation, operation_of
from plamo2_jax.plan.schedule.dump import Schedules

_NAME = re.compile(r"%[\w.\-]+")
_DIMS = re.compile(r"\[[\d,]*\]")
_LAYOUT = re.compile(r"\{[^{}]*\}")
_TRAILING = re.compile(r", (metadata|backend_config|frontend_attributes|sharding|control-predecessors|origin)=")
# Share of the peak that a matrix product reaches with large tiles; used before any program is compiled completely.
_PRODUCT_EFFICIENCY = 0.93


@dataclasses.dataclass(frozen=True)
class Cost:
    """Figures of one operation of a completely compiled program, and the properties that they depend on."""

    form: str
    """Digest of the operation with shapes, layouts and memories. Equal forms have equal costs."""
    family: str
    """Digest of the operation without sizes and layouts."""
    product: tuple[int, ...]
    """Rows, contraction and columns of the largest matrix product; empty for operations without a product."""
    work: float
    """FLOPs of matrix products; without one, bytes of operands and results."""
    moved: float
    """Bytes of operands and results."""
    estimated_cycles: int | None
    bundles: int | None
    mxu_cycles: float
    hbm_bytes: int


class Costs:
    """Costs of the operations of completely compiled programs."""

    def __init__(self, costs: Iterable[Cost] = ()) -> None:
        self._forms: dict[str, Cost] = {}
        self._families: dict[str, list[Cost]] = {}
        self._products: list[Cost] = []
        self.add(costs)

    def add(self, costs: Iterable[Cost]) -> None:
        """Add the costs of a program. The first cost of a form is kept."""
        for cost in costs:
            if cost.form not in self._forms:
                self._forms[cost.form] = cost
                self._families.setdefault(cost.family, []).append(cost)
                if cost.product and cost.estimated_cycles:
                    self._products.append(cost)

    def operation(
        self, module: Module, instruction: Instruction, computation: Computation, times: int, chip: Chip
    ) -> tuple[Operation, bool]:
        """Return an operation of a program without machine code, and whether its cost was taken from an equal operation.

        Otherwise a matrix product has the cost of the product with the nearest sizes, scaled by FLOPs. Other operations are scaled by bytes
        from the nearest of their family, or are roofline estimates if the family is not known.
        """
        own = operation_of(module, instruction, times, None, instruction_bytes(module, computation, instruction), chip)
        described = describe(module, instruction, computation)
        equal = self._forms.get(described.form)
        if equal is not None:
            return _with_cost(own, equal, 1.0), True
        if described.product:
            if not self._products:
                cycles = described.work / chip.peak_flops * chip.clock / _PRODUCT_EFFICIENCY
                return dataclasses.replace(own, estimated_cycles=round(max(cycles, _moving(own, chip)))), False
            nearest = min(self._products, key=lambda cost: _distance(cost, described))
            return _with_cost(own, nearest, described.work / nearest.work), False
        alike = self._families.get(described.family)
        if alike and described.work:
            nearest = min(alike, key=lambda cost: _ratio(cost.work, described.work))
            return _with_cost(own, nearest, described.work / max(nearest.work, 1.0)), False
        return dataclasses.replace(own, estimated_cycles=round(_moving(own, chip))), False


def _moving(operation: Operation, chip: Chip) -> float:
    """Return the cycles in which HBM moves the bytes of an operation."""
    return operation.hbm_bytes / chip.hbm_bytes_per_cycle


def _ratio(one: float, other: float) -> float:
    return abs(math.log(max(one, 1.0) / max(other, 1.0)))


def _distance(cost: Cost, described: Cost) -> tuple[float, float]:
    """Return how far two products differ in their sizes, and then in the bytes of the operations that they are part of."""
    sizes = sum(_ratio(one, other) for one, other in zip(cost.product, described.product, strict=True))
    return sizes, _ratio(cost.moved, described.moved)


def _with_cost(operation: Operation, cost: Cost, scale: float) -> Operation:
    def scaled(cycles: int | None) -> int | None:
        return None if cycles is None else round(cycles * scale)

    return dataclasses.replace(
        operation,
        estimated_cycles=scaled(cost.estimated_cycles),
        bundles=scaled(cost.bundles),
        mxu_cycles=cost.mxu_cycles * scale,
        # The schedule of a kernel tells which bytes it moves; for other operations, the program does.
        hbm_bytes=round(cost.hbm_bytes * scale) if operation.kind == "kernel" else operation.hbm_bytes,
    )


def compiled_operations(module: Module, schedules: Schedules, chip: Chip) -> Iterator[tuple[Operation, Cost]]:
    """Yield the operations of a completely compiled program, except collectives, each with its cost."""
    computed = computed_shares(module)
    for instruction, computation, times in module.executed():
        if is_collective(module, instruction):
            continue
        share = computed.get(instruction.name, 1.0)
        o = estimate_operation(module, instruction, computation, times, schedules, chip, share)
        figures = {name: getattr(o, name) for name in ("estimated_cycles", "bundles", "mxu_cycles", "hbm_bytes")}
        yield o, dataclasses.replace(describe(module, instruction, computation), **figures)


def describe(module: Module, instruction: Instruction, computation: Computation) -> Cost:
    """Return a Cost with the properties that determine the cost of an instruction, and without figures."""
    shapes = [computation[name].shape if name in computation else "" for name in instruction.operands]
    lines = [_line(instruction, shapes)]
    products: list[tuple[float, tuple[int, ...]]] = []
    if instruction.op == "fusion":
        for inner, scope in inner_instructions(module, instruction, computation):
            operands = [scope[name].shape for name in inner.operands if name in scope]
            lines.append(_line(inner, operands))
            if inner.op == "convolution":
                products.append(product_sizes(inner, operands))
    elif instruction.op == "convolution":
        products.append(product_sizes(instruction, shapes))
    if instruction.is_kernel:
        lines.append(re.sub(r"[.\d]+$", "", instruction.name))
    moved = float(sum(map(array_bytes, [*shapes, instruction.shape])))
    work = sum(flops for flops, _ in products)
    exact = "\n".join(lines)
    family = _digest(_LAYOUT.sub("", _DIMS.sub("[]", exact)))
    largest = max(products)[1] if products else ()
    return Cost(_digest(exact), family, largest, work or moved, moved, None, None, 0.0, 0)


def _line(instruction: Instruction, operands: Sequence[str]) -> str:
    """Return an instruction without names and without what the compiler notes about its origin or its code."""
    attributes = _TRAILING.split(instruction.attributes, maxsplit=1)[0]
    # The value of a constant and the index of a parameter are in the arguments.
    arguments = "" if instruction.operands else instruction.arguments[:40]
    return f"{instruction.op} {instruction.shape} ({'; '.join(operands)}) {arguments} {_NAME.sub('', attributes)}"


def product_sizes(convolution: Instruction, operands: Sequence[str]) -> tuple[float, tuple[int, ...]]:
    """Return the FLOPs of a matrix product, which XLA writes as a convolution, and its rows, contraction and columns.

    They follow from the sizes of operands and result: rows · contraction, contraction · columns and rows · columns. The window of the
    convolution does not tell: for several axes of heads and channels it contains multiplications by zero.
    """
    left, right, result = (float(math.prod(_sizes(shape))) for shape in (*operands[:2], convolution.shape))
    sizes = (left * result / right, left * right / result, right * result / left)
    return 2 * math.sqrt(left * right * result), tuple(round(math.sqrt(size)) for size in sizes)


def _sizes(shape: str) -> list[int]:
    match = re.search(r"\[([\d,]*)\]", shape)
    return [int(n) for n in match[1].split(",") if n] if match else []


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
