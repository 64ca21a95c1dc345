"""Predict the time of a step by a roofline, from the compiler's figures for a program and the published bandwidths of a chip."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Sequence

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.collectives import Collective
from plamo2_jax.plan.hbm_traffic import instruction_bytes
from plamo2_jax.plan.hlo import Computation, Instruction, Module
from plamo2_jax.plan.overlap import waiting_seconds
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_jax.plan.schedule.scalar_core import Execution

PHASES = ("forward", "recomputed", "backward", "update")
_MOVES = {"copy", "transpose", "reshape", "bitcast", "parameter"}

# Parts of the model by the names that modules and kernels leave in the program. The first match counts.
_PARTS = (
    (r"splash", "attention kernels (splash)"),
    (r"\bssd_\w+", "scan kernels (ssd)"),
    (r"/sampling/", "sampling"),
    (r"causal_conv1d", "convolution"),
    (r"logits|log_softmax|predict|cross_entropy", "logits and loss"),
    (r"features/(Plamo2\._layers/)?(gather|scatter|take|sort)|embedding", "embedding"),
    (r"/mlp/.*dot_general", "MLP products"),
    (r"/mixer/.*(dot_general|->)", "mixer products"),
    (r"/mlp/", "MLP, elementwise"),
    (r"norm\b", "norms"),
    (r"/mixer/", "mixer, elementwise"),
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of the compiled program. Cycles and bytes are for one execution on one chip."""

    name: str
    kind: str
    """`kernel` (a Pallas kernel), `convolution` (a matrix product, with the operations fused into it), `copy` (a change of layout),
    `sparsecore` (runs on the SparseCore; the compiler reports no cycles for it), or XLA's name of the instruction."""
    op_name: str
    """The JAX operation that it comes from, with the path of modules and transformations."""
    times: int
    """Number of executions: the product of the trip counts of the loops around it."""
    estimated_cycles: int | None
    """Cycles by XLA's cost model, memory stalls included. None: no estimate, as for every Pallas kernel."""
    bundles: int | None
    """Bundles of its schedule that are executed; memory stalls are not included. None: it has no schedule, or the trip counts of its loops
    depend on data."""
    mxu_cycles: float
    """Cycles of its matrix products at the peak rate of the matrix units. A schedule can issue them faster than that."""
    hbm_bytes: int
    """Bytes read from and written to HBM."""

    @property
    def cycles(self) -> int:
        """XLA's estimate if there is one, else the bundles."""
        return (self.bundles if self.estimated_cycles is None else self.estimated_cycles) or 0

    @property
    def compute(self) -> float:
        """Lower bound on the cycles that the core needs."""
        return max(self.bundles or 0, self.mxu_cycles)


def estimate_operation(
    module: Module,
    instruction: Instruction,
    computation: Computation,
    times: int,
    schedules: Schedules,
    chip: Chip,
    computed: float = 1.0,
) -> Operation:
    """Return the figures of one instruction, executed `times` times: XLA's estimate, or the schedule of a kernel.

    The bytes of a kernel are the bytes of the transfers that its schedule starts. If the transfers or the loops depend on data, its bytes
    are the bytes of its operands and results, and its bundles are None.

    Args:
        computed: Share of a kernel's grid steps that do not skip the code behind branches that depend on data.
    """

    def counted(skip: bool) -> Operation:
        runs: list[Execution] = []
        if instruction.is_kernel:
            with contextlib.suppress(PlamoError):
                runs = schedules.runs(instruction.name, chip.cores, skip=skip)
        moved = sum(run.hbm_bytes for run in runs) or instruction_bytes(module, computation, instruction)
        return operation_of(module, instruction, times, longest_run(runs), moved, chip)

    operation = counted(skip=False)
    if computed == 1 or operation.bundles is None:
        return operation
    skipping = counted(skip=True)

    def mean(one: float, other: float) -> float:
        return computed * one + (1 - computed) * other

    return dataclasses.replace(
        operation,
        bundles=round(mean(operation.bundles, skipping.bundles)),
        mxu_cycles=mean(operation.mxu_cycles, skipping.mxu_cycles),
        hbm_bytes=round(mean(operation.hbm_bytes, skipping.hbm_bytes)),
    )


def longest_run(runs: Sequence[Execution]) -> Execution | None:
    """Return the run of the core that needs most cycles; None if there is no run."""
    return max(runs, key=lambda run: run.cycles, default=None)


def operation_of(
    module: Module, instruction: Instruction, times: int, run: Execution | None, hbm_bytes: int, chip: Chip
) -> Operation:
    """Return an instruction as an Operation, given the run of its schedule and the bytes that it moves."""
    return Operation(
        instruction.name,
        _kind(module, instruction),
        instruction.op_name,
        times,
        # The estimate of a kernel would be the number that its author wrote into the call.
        None if instruction.is_kernel else instruction.estimated_cycles,
        run and run.cycles,
        chip.mxu_cycles(run.matmul_rows) if run else 0.0,
        hbm_bytes,
    )


def _kind(module: Module, instruction: Instruction) -> str:
    if instruction.is_kernel:
        return "kernel"
    if instruction.thread:
        return instruction.thread
    fused = module.fused(instruction)
    inner = {instruction.op} if fused is None else {i.op for i in fused.values()}
    if inner & {"convolution", "dot"}:
        return "convolution"
    return "copy" if inner <= _MOVES else instruction.op


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds of one step on one chip."""

    compute: float
    """Cycles over the clock. XLA's estimates include memory stalls; the schedules of Pallas kernels do not."""
    hbm: float
    """HBM bytes over the HBM bandwidth."""
    ici: float
    """Bytes on the links between chips over their bandwidth."""
    dcn: float
    """Bytes between slices over the bandwidth of the data center network."""
    waiting: float
    """Seconds for which the core waits for collectives (overlap.py); the rest of `ici` and `dcn` is hidden behind computation."""
    scheduled: float
    """Time as the compiler has scheduled the program: every operation waits for its bytes, and collectives that are not hidden add up."""

    @property
    def limit(self) -> str:
        """Name of the busiest resource: compute, hbm, ici or dcn. Its time is the predicted time if everything overlaps."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda name: getattr(self, name))


def step_times(module: Module, operations: Iterable[Operation], moved: Sequence[Collective], chip: Chip) -> StepTimes:
    """Return the times of a program with these operations and collectives."""
    compute = hbm = slower = 0.0
    each: dict[str, float] = {}
    for o in operations:
        seconds, moving = operation_seconds(o, chip)
        compute += seconds
        hbm += moving
        slower += max(seconds, moving)
        each[o.name] = max(seconds, moving) / o.times if o.times else 0.0
    ici = sum(c.times * c.seconds for c in moved if c.links)
    dcn = sum(c.times * c.seconds for c in moved if not c.links)
    waiting = waiting_seconds(module, each, moved)
    return StepTimes(compute, hbm, ici, dcn, waiting, slower + waiting)


def operation_seconds(operation: Operation, chip: Chip) -> tuple[float, float]:
    """Return the seconds of all executions of an operation, by its cycles and by its HBM bytes."""
    o = operation
    cycles = max(o.cycles, o.mxu_cycles if o.kind == "kernel" else 0.0)
    return o.times * cycles / chip.clock, o.times * o.hbm_bytes / chip.hbm_bytes_per_second


def utilization(flops: float, seconds: float, devices: int, chip: Chip) -> float:
    """Return the model FLOPs utilization (PaLM, arXiv:2204.02311, appendix B)."""
    return flops / (seconds * devices * chip.peak_flops)


def phase(operation: Operation) -> str:
    """Return the phase of a train step that an operation belongs to, one of PHASES."""
    op_name = operation.op_name
    if "rematted_computation" in op_name:
        return "recomputed"
    # The compiler drops the op_name of a gradient's kernel, but keeps the kernel's own name.
    if "transpose(" in op_name or re.search(r"_(dkv|dq|backward)_?", operation.name):
        return "backward"
    if operation.kind == "kernel" and not op_name:
        return "forward"
    return "forward" if re.search(r"jvp\(|Plamo2|/sampling/", op_name) else "update"


def part(operation: Operation) -> str:
    """Return the part of the model that an operation belongs to."""
    if operation.kind == "copy":
        return "copies and changes of layout"
    if operation.kind in ("copy-start", "slice-start"):
        return "transfers ahead of use"
    for pattern, name in _PARTS:
        if re.search(pattern, f"{operation.op_name} {operation.name}"):
            return name
    is_update = operation.op_name and phase(operation) == "update"
    return "optimizer and sums of gradients" if is_update else "other"


def by_part(operations: Iterable[Operation], chip: Chip) -> dict[str, dict[str, float]]:
    """Return seconds by part of the model and phase, the largest part first."""
    sums: dict[str, dict[str, float]] = {}
    for o in operations:
        row = sums.setdefault(part(o), dict.fromkeys(PHASES, 0.0))
        row[phase(o)] += max(operation_seconds(o, chip))
    return dict(sorted(sums.items(), key=lambda item: -sum(item[1].values())))
