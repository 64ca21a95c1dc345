"""What a compiled program costs by the compiler's figures: cycles, bytes, memory, operation by operation."""

from __future__ import annotations

import dataclasses
import re

from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.hlo import Computation, Instruction, Module, hbm_bytes
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_jax.plan.schedule.kernel_traffic import KernelCall
from plamo2_jax.plan.schedule.scalar_core import Execution
from plamo2_jax.plan.traffic import instruction_bytes

_MOVES = frozenset(("copy", "transpose", "reshape", "bitcast", "parameter"))


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of the compiled program; figures are of one execution."""

    name: str
    kind: str
    """kernel, convolution (a matrix product, and what is fused with it), copy (a change of layout), sparsecore (an operation that runs on
    the SparseCore, of which the compiler tells no cycles), or XLA's own word."""
    op_name: str
    """Where in the traced function it comes from."""
    times: int
    """How often it is executed: the trip counts of the loops around it."""
    estimated_cycles: int | None
    """XLA's cost model, in which waiting for HBM is included. None: it says nothing, as of every Pallas kernel."""
    bundles: int | None
    """Bundles of its schedule as they are executed; waiting is not included. None: it has no schedule, or how often its loops run
    depends on data."""
    mxu_cycles: float
    """What its matrix products take at the matrix units' peak. Schedules let them follow each other faster than that."""
    hbm_bytes: int

    @property
    def cycles(self) -> int:
        """XLA's estimate where there is one, else the bundles."""
        return (self.bundles if self.estimated_cycles is None else self.estimated_cycles) or 0

    @property
    def compute(self) -> float:
        """The least that the core is busy with it."""
        return max(self.bundles or 0, self.mxu_cycles)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel among the operations."""

    name: str
    grid: tuple[int, ...]
    bundles: int
    """Of the whole call, on the core that runs longest."""
    step_bundles: float
    """Of a grid step in the steady state."""
    assumed_branches: int
    """Branches that depend on data; the code behind them is counted."""
    mxu_cycles: float
    """Of the whole call, at the matrix units' peak."""
    hbm_bytes: int
    """From the block specs."""
    transferred_bytes: int
    """By the transfers that the schedule starts, as far as their sizes are known; the same, unless the kernel has some of its own."""
    vmem_bytes: int
    utilization: dict[str, float]
    """Share of the slots of each unit in use."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """A program on one device."""

    chip: Chip
    operations: tuple[Operation, ...]
    kernels: tuple[Kernel, ...]
    temp_bytes: int
    """HBM for temporaries."""
    vmem_bytes: int
    """The most vector memory that one operation takes while it runs."""

    @property
    def cycles(self) -> int:
        """XLA's estimates, and the bundles of what it makes none for."""
        return sum(o.times * o.cycles for o in self.operations)

    @property
    def bundles(self) -> int:
        """Of everything."""
        return sum(o.times * (o.bundles or 0) for o in self.operations)

    @property
    def mxu_cycles(self) -> float:
        """Of all matrix products at peak."""
        return sum(o.times * o.mxu_cycles for o in self.operations)

    @property
    def hbm_bytes(self) -> int:
        """Moved to and from HBM."""
        return sum(o.times * o.hbm_bytes for o in self.operations)

    @property
    def hbm_cycles(self) -> float:
        """Those bytes over the bandwidth."""
        return self.hbm_bytes / self.chip.hbm_bytes_per_cycle

    @property
    def bound(self) -> float:
        """The roofline in cycles: these instructions, products and bytes take no less."""
        return max(sum(o.times * o.compute for o in self.operations), self.hbm_cycles)

    def by_kind(self) -> dict[str, int]:
        """Cycles of each kind of operation, most first."""
        sums: dict[str, int] = {}
        for operation in self.operations:
            sums[operation.kind] = sums.get(operation.kind, 0) + operation.times * operation.cycles
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def program_cost(module: Module, schedules: Schedules, calls: list[KernelCall], chip: Chip, temp_bytes: int) -> Cost:
    """Cost of a compiled program.

    Args:
        module: the program.
        schedules: what its compilation dumped.
        calls: the `pallas_call`s of the function that was compiled.
        chip: where it would run.
        temp_bytes: HBM for temporaries.

    Raises:
        ValueError: a trip count or the traffic of a kernel cannot be known.
    """
    operations, kernels, waiting = [], [], list(calls)
    vmem_bytes = 0
    for instruction, computation, times in module.executed():
        runs = _runs(schedules, instruction, chip)
        longest = max(runs, key=lambda run: run.cycles, default=None)
        mxu_cycles = chip.mxu_cycles(longest.matmul_rows) if longest else 0.0
        if instruction.is_kernel:
            if longest is None:
                raise ValueError(f"the compiler wrote no schedule for the kernel {instruction.name}")
            call = _take(waiting, instruction)
            moved = _kernel_bytes(call, instruction, computation)
            kernels.append(
                Kernel(
                    call.name,
                    call.grid,
                    longest.cycles,
                    longest.step,
                    longest.assumed,
                    mxu_cycles,
                    moved,
                    sum(run.hbm_bytes for run in runs),
                    instruction.vmem_bytes,
                    schedules.utilization(instruction.name, longest),
                )
            )
        else:
            moved = instruction_bytes(module, computation, instruction)
        vmem_bytes = max(vmem_bytes, instruction.vmem_bytes)
        operations.append(
            Operation(
                instruction.name,
                _kind(module, instruction),
                instruction.op_name,
                times,
                # A kernel's would be what its author wrote into the call.
                None if instruction.is_kernel else instruction.estimated_cycles,
                longest and longest.cycles,
                mxu_cycles,
                moved,
            )
        )
    return Cost(chip, tuple(operations), tuple(kernels), temp_bytes, vmem_bytes)


def operation_of(
    module: Module, instruction: Instruction, computation: Computation, times: int, schedules: Schedules, chip: Chip
) -> Operation:
    """One instruction of a program too large to count every schedule of: XLA's estimate, and of a kernel its schedule.

    A kernel's bytes are those of the transfers that its schedule starts. Where they or its loops depend on data, they are those of its
    operands and results, and its bundles are None.
    """
    runs: list[Execution] = []
    if instruction.is_kernel:
        try:
            runs = schedules.runs(instruction.name, chip.cores)
        except ValueError:
            runs = []
    longest = max(runs, key=lambda run: run.cycles, default=None)
    moved = sum(run.hbm_bytes for run in runs) or instruction_bytes(module, computation, instruction)
    return Operation(
        instruction.name,
        _kind(module, instruction),
        instruction.op_name,
        times,
        None if instruction.is_kernel else instruction.estimated_cycles,
        longest and longest.cycles,
        chip.mxu_cycles(longest.matmul_rows) if longest else 0.0,
        moved,
    )


def _runs(schedules: Schedules, instruction: Instruction, chip: Chip) -> list[Execution]:
    try:
        return schedules.runs(instruction.name, chip.cores)
    except ValueError:
        # A kernel that cannot be counted is no answer; one of XLA's small operations is told by its estimate.
        if instruction.is_kernel:
            raise
        return []


def _take(calls: list[KernelCall], instruction: Instruction) -> KernelCall:
    """The call that the instruction comes from: the first one left whose name is in its path."""
    for call in calls:
        if re.search(rf"\b{re.escape(call.name)}\b", instruction.op_name):
            calls.remove(call)
            return call
    raise ValueError(f"the kernel {instruction.name} ({instruction.op_name}) is none of the function's pallas_calls")


def _kernel_bytes(call: KernelCall, instruction: Instruction, computation: Computation) -> int:
    """By the block specs, but nothing for an operand that XLA keeps in VMEM around the call."""
    results = re.findall(r"\w+\[[\d,]*\]\{[^{}]*\}", instruction.shape)
    shapes = [*(computation[name].shape for name in instruction.operands), *results]
    if len(shapes) != len(call.blocks):
        shapes = ["f32[1]"] * len(call.blocks)
    return sum(block.bytes * block.moves for block, shape in zip(call.blocks, shapes, strict=True) if hbm_bytes(shape))


def _kind(module: Module, instruction: Instruction) -> str:
    if instruction.is_kernel:
        return "kernel"
    if instruction.thread:
        return instruction.thread
    inner = [instruction.op]
    if instruction.op == "fusion":
        inner = [i.op for i in module.computations[instruction.called("calls")].values()]
    if {"convolution", "dot"} & set(inner):
        return "convolution"
    return "copy" if _MOVES.issuperset(inner) else instruction.op
