"""Add up the cost of a compiled program: cycles, bytes and memory of each operation, and more figures for its Pallas kernels."""

from __future__ import annotations

import collections
import dataclasses
import re

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.hbm_traffic import instruction_bytes
from plamo2_jax.plan.hlo import Computation, Instruction, Module, hbm_bytes
from plamo2_jax.plan.roofline import Operation, longest_run, operation_of
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_jax.plan.schedule.kernel_traffic import KernelCall
from plamo2_jax.plan.schedule.scalar_core import Execution


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel of a program. Unless a field says otherwise, figures are for one call with all its grid steps."""

    name: str
    grid: tuple[int, ...]
    bundles: int
    """Bundles executed on the core that runs longest."""
    step_bundles: float
    """Bundles of one grid step in the steady state."""
    assumed_branches: int
    """Number of branches that depend on data. The code behind them is counted as if it runs."""
    mxu_cycles: float
    """Cycles of the matrix products at the peak rate of the matrix units."""
    hbm_bytes: int
    """HBM bytes by the block specs."""
    transferred_bytes: int
    """Bytes of the transfers of known size that the schedule starts. They differ from `hbm_bytes` if the kernel starts transfers itself."""
    vmem_bytes: int
    utilization: dict[str, float]
    """Share of the issue slots of each functional unit that is used."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a program on one device."""

    chip: Chip
    operations: tuple[Operation, ...]
    kernels: tuple[Kernel, ...]
    temp_bytes: int
    """HBM bytes of temporaries."""
    vmem_bytes: int
    """Largest vector memory that one operation needs."""

    @property
    def cycles(self) -> int:
        """XLA's estimates, and the bundles of operations that have no estimate."""
        return sum(o.times * o.cycles for o in self.operations)

    @property
    def bundles(self) -> int:
        """Executed bundles of all operations."""
        return sum(o.times * (o.bundles or 0) for o in self.operations)

    @property
    def mxu_cycles(self) -> float:
        """Cycles of all matrix products at the peak rate of the matrix units."""
        return sum(o.times * o.mxu_cycles for o in self.operations)

    @property
    def hbm_bytes(self) -> int:
        """Bytes read from and written to HBM."""
        return sum(o.times * o.hbm_bytes for o in self.operations)

    @property
    def hbm_cycles(self) -> float:
        """Cycles that these bytes take at the HBM bandwidth."""
        return self.hbm_bytes / self.chip.hbm_bytes_per_cycle

    @property
    def bound(self) -> float:
        """The roofline: a lower bound on the cycles of these instructions, products and bytes."""
        return max(sum(o.times * o.compute for o in self.operations), self.hbm_cycles)

    def by_kind(self) -> dict[str, int]:
        """Return the cycles of each kind of operation, the largest first."""
        sums: collections.Counter[str] = collections.Counter()
        for operation in self.operations:
            sums[operation.kind] += operation.times * operation.cycles
        return dict(sums.most_common())


def program_cost(module: Module, schedules: Schedules, calls: list[KernelCall], chip: Chip, temp_bytes: int) -> Cost:
    """Return the cost of a compiled program, given the schedules of its compilation and the `pallas_call`s of the traced function.

    Raises:
        PlamoError: the trip count of a loop or the traffic of a kernel is not known.
    """
    operations, kernels, waiting = [], [], list(calls)
    vmem_bytes = 0
    for instruction, computation, times in module.executed():
        runs = _runs(schedules, instruction, chip)
        longest = longest_run(runs)
        if instruction.is_kernel:
            if longest is None:
                raise PlamoError(f"the compiler wrote no schedule for the kernel {instruction.name}")
            call = _take(waiting, instruction)
            moved = _kernel_bytes(call, instruction, computation)
            kernels.append(
                Kernel(
                    call.name,
                    call.grid,
                    longest.cycles,
                    longest.step,
                    longest.assumed,
                    chip.mxu_cycles(longest.matmul_rows),
                    moved,
                    sum(run.hbm_bytes for run in runs),
                    instruction.vmem_bytes,
                    schedules.utilization(instruction.name, longest),
                )
            )
        else:
            moved = instruction_bytes(module, computation, instruction)
        vmem_bytes = max(vmem_bytes, instruction.vmem_bytes)
        operations.append(operation_of(module, instruction, times, longest, moved, chip))
    return Cost(chip, tuple(operations), tuple(kernels), temp_bytes, vmem_bytes)


def _runs(schedules: Schedules, instruction: Instruction, chip: Chip) -> list[Execution]:
    try:
        return schedules.runs(instruction.name, chip.cores)
    except PlamoError:
        # A kernel must be counted. For one of XLA's small operations the estimate is enough.
        if instruction.is_kernel:
            raise
        return []


def _take(calls: list[KernelCall], instruction: Instruction) -> KernelCall:
    """Remove and return the call that an instruction comes from: the first remaining call whose name is in the op_name."""
    for call in calls:
        if re.search(rf"\b{re.escape(call.name)}\b", instruction.op_name):
            calls.remove(call)
            return call
    raise PlamoError(f"the kernel {instruction.name} ({instruction.op_name}) is not a pallas_call of the function")


def _kernel_bytes(call: KernelCall, instruction: Instruction, computation: Computation) -> int:
    """Return the bytes by the block specs. An operand that XLA keeps in VMEM around the call counts as 0."""
    results = re.findall(r"\w+\[[\d,]*\]\{[^{}]*\}", instruction.shape)
    shapes = [*(computation[name].shape for name in instruction.operands), *results]
    if len(shapes) != len(call.blocks):
        shapes = ["f32[1]"] * len(call.blocks)
    return sum(block.bytes * block.moves for block, shape in zip(call.blocks, shapes, strict=True) if hbm_bytes(shape))
