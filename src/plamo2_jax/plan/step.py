"""Compile one program of a run and read its memory by kind, its collectives, its cycles and its predicted time.

`compile_step` and `gpu_argument_bytes` run in the compiler process (worker.py).
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from plamo2_jax.plan.buffers import dump_options, read_buffers
from plamo2_jax.plan.chips import Chip, chip_of
from plamo2_jax.plan.collectives import Collective, Place, Slice, collectives
from plamo2_jax.plan.compiler import first_line, libtpu_version, topology_devices
from plamo2_jax.plan.costs import Cost, compiled_operations
from plamo2_jax.plan.hlo import Module, parse_module
from plamo2_jax.plan.memory import chip_bytes, memory_of, parse_overflow
from plamo2_jax.plan.program import Program, train_program
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.roofline import (
    Operation,
    by_part,
    operation_seconds,
    part,
    phase,
    step_times,
    utilization,
)
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_jax.plan.serving import decode_program, prefill_program, serving_mesh

_MOST_OPERATIONS = 30


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The compiler's figures for one program on a slice. Bytes and seconds are for one chip and one call."""

    device: str
    """Device kind."""
    devices: int
    mesh: dict[str, int]
    """Devices along each mesh axis."""
    tokens: int
    """Tokens of one call on all devices."""
    flops: float
    """Model FLOPs of one call on all devices."""
    arguments: dict[str, int]
    """Argument bytes by kind, without padding."""
    hbm_available: int
    hbm_needed: int
    """If it is larger than `hbm_available`, the program does not fit and the fields from `memory` on are empty."""
    seconds_to_trace: float
    seconds_to_compile: float
    """Lowering is included."""
    cpu_seconds_to_compile: float
    """Processor time of all cores. It does not depend on the other work of the machine."""
    libtpu: str
    """Version of the compiler."""
    error: str | None = None
    """Reason why it does not compile."""
    memory: dict[str, int] | None = None
    """Fields of `memory.Memory`."""
    cycles: int = 0
    """Cycles of all operations except collectives."""
    unknown: tuple[str, ...] = ()
    """Kernels whose cycles are not known, because their loops depend on data."""
    sparsecore: tuple[str, ...] = ()
    """Operations on the SparseCore. Their bytes are counted; the compiler reports no cycles for them."""
    rematerialised: int = 0
    """Number of operations that the compiler repeats to save memory."""
    times: dict[str, float] | None = None
    """Fields of `roofline.StepTimes`."""
    parts: dict[str, dict[str, float]] | None = None
    """Seconds by part of the model and phase of the step."""
    collectives: tuple[dict[str, Any], ...] = ()
    operations: tuple[dict[str, Any], ...] = ()
    """The longest operations."""
    scaled: float = 0.0
    """Share of the operations' seconds that is not from equal operations: cycles scaled from similar operations (draft.py). 0 for a
    complete compilation."""

    @property
    def fits(self) -> bool:
        """Whether it compiles and fits into HBM."""
        return self.error is None and self.hbm_needed <= self.hbm_available

    @property
    def seconds(self) -> float:
        """Predicted time if everything overlaps."""
        return self.times[self.times["limit"]]

    @property
    def mfu(self) -> float:
        """Upper bound on model FLOPs utilization: everything overlaps."""
        return utilization(self.flops, self.seconds, self.devices, chip_of(self.device))

    @property
    def scheduled_mfu(self) -> float:
        """Model FLOPs utilization of the program as it is scheduled: it waits for bytes and for collectives that are not hidden."""
        return utilization(self.flops, self.times["scheduled"], self.devices, chip_of(self.device))


def compile_step(request: Request, dump: Path) -> StepPlan:
    """Build the program of a request and compile it for its slice. The process must dump schedules to the folder `dump`.

    Raises:
        PlamoError: there is no such slice, or the run cannot be divided over it.
        ImplementationError: a kernel cannot run with the shapes of the model.
    """
    devices = topology_devices(request.topology, request.config.mesh.slices)
    if request.kind == "train":
        return plan_step(train_program(request.config, devices, request.kernels), dump)
    config, mesh = request.config, serving_mesh(request.config.model, devices, request.config.mesh.slices)
    sizes = {"rows": request.rows, "tokens": request.context}
    if request.kind == "decode":
        return plan_step(decode_program(config.model, config.dtype, mesh, **sizes), dump)
    return plan_step(prefill_program(config.model, config.dtype, mesh, request.kernels, **sizes), dump)


def gpu_argument_bytes(request: Request, dump: Path) -> dict[str, int]:
    """Return the argument bytes of a train step by kind, and as "all" the total by the CPU's compiler.

    The process must have as many CPU devices as `request.gpus`.
    """
    del dump
    program = train_program(request.config, jax.devices(), "xla")
    compiled = program.trace().lower().compile()
    kinds = {kind: chip_bytes(tree) for kind, tree in program.parts.items()}
    return {**kinds, "all": compiled.memory_analysis().argument_size_in_bytes}


def compile_with_costs(request: Request, dump: Path) -> tuple[StepPlan, tuple[Cost, ...]]:
    """Compile the train step of a request, as `compile_step`, and return its plan and the costs of its operations."""
    devices = topology_devices(request.topology, request.config.mesh.slices)
    return _plan_and_costs(train_program(request.config, devices, request.kernels), dump)


def plan_step(program: Program, dump: Path) -> StepPlan:
    """Compile a program for the devices of a slice and read the result, as `compile_step`."""
    return _plan_and_costs(program, dump)[0]


def _plan_and_costs(program: Program, dump: Path) -> tuple[StepPlan, tuple[Cost, ...]]:
    begin = time.perf_counter()
    traced = program.trace()
    middle, used = time.perf_counter(), time.process_time()
    compiled = overflow = error = None
    try:
        compiled = traced.lower().compile(compiler_options=dump_options(dump))
    except Exception as problem:  # The compiler's refusal is a result, whatever its type.
        overflow, error = parse_overflow(str(problem)), first_line(problem)
    facts = facts_of(program, middle - begin, time.perf_counter() - middle, time.process_time() - used)
    if overflow is not None:
        return StepPlan(**facts | {"hbm_available": overflow.available}, hbm_needed=overflow.needed), ()
    if error is not None:
        return StepPlan(**facts, hbm_needed=0, error=error), ()
    devices = list(program.mesh.devices.flat)
    chip = chip_of(devices[0].device_kind)
    module = dataclasses.replace(parse_module(compiled.as_text()), data_dependent_trips=program.data_dependent_trips)
    parameters = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(program.parts["parameters"])]
    memory = memory_of(
        module,
        compiled.memory_analysis(),
        read_buffers(dump),
        facts["arguments"],
        parameters,
        facts["hbm_available"],
    )
    pairs = list(compiled_operations(module, Schedules(dump), chip))
    found = StepPlan(
        **facts,
        hbm_needed=memory.used,
        memory=memory.as_dict(),
        **figures(module, [operation for operation, _ in pairs], chip, topology_of(devices)),
    )
    return found, tuple({cost.form: cost for _, cost in pairs}.values())


def facts_of(program: Program, traced: float, compiled: float, cpu: float) -> dict[str, Any]:
    """Return the fields of a StepPlan that do not need the compiled program; the arguments are the seconds that it took."""
    devices = list(program.mesh.devices.flat)
    chip = chip_of(devices[0].device_kind)
    return {
        "device": chip.kind,
        "devices": len(devices),
        "mesh": dict(program.mesh.shape),
        "tokens": program.tokens,
        "flops": program.flops,
        "arguments": {kind: chip_bytes(tree) for kind, tree in program.parts.items()},
        "hbm_available": round(chip.hbm_bytes),
        "seconds_to_trace": traced,
        "seconds_to_compile": compiled,
        "cpu_seconds_to_compile": cpu,
        "libtpu": libtpu_version(),
    }


def topology_of(devices: Sequence[jax.Device]) -> Slice:
    """Return the chips of a program."""
    places = tuple(Place(getattr(d, "slice_index", 0) or 0, tuple(d.coords)) for d in devices)
    return Slice(chip_of(devices[0].device_kind), places)


def figures(module: Module, operations: Sequence[Operation], chip: Chip, topology: Slice) -> dict[str, Any]:
    """Return the fields of a StepPlan that come from a program and its operations, without collectives."""
    moved = collectives(module, topology)
    longest = sorted(operations, key=lambda o: -max(operation_seconds(o, chip)))[:_MOST_OPERATIONS]
    found = step_times(module, operations, moved, chip)
    return {
        "cycles": sum(o.times * o.cycles for o in operations),
        "unknown": tuple(o.name for o in operations if o.kind == "kernel" and o.bundles is None),
        "sparsecore": tuple(o.name for o in operations if o.kind == "sparsecore"),
        "rematerialised": sum(".remat" in o.name for o in operations),
        "times": {**dataclasses.asdict(found), "limit": found.limit},
        "parts": by_part(operations, chip),
        "collectives": tuple(_by_kind(moved)),
        "operations": tuple(_row(o, chip) for o in longest),
    }


def _row(o: Operation, chip: Chip) -> dict[str, Any]:
    seconds, hbm_seconds = operation_seconds(o, chip)
    row = dataclasses.asdict(o)
    return {**row, "part": part(o), "phase": phase(o), "seconds": seconds, "hbm_seconds": hbm_seconds}


def _by_kind(moved: Sequence[Collective]) -> list[dict[str, Any]]:
    """Return sums by kind, group size and links, the longest first, each with the op_name of its longest collective."""
    groups = collections.defaultdict(list)
    for c in moved:
        groups[c.kind, c.group, c.links, c.asynchronous].append(c)
    rows = [
        {
            **dict(zip(("kind", "group", "links", "asynchronous"), key, strict=True)),
            "count": sum(c.times for c in alike),
            "bytes": float(sum(c.times * c.wire_bytes for c in alike)),
            "seconds": sum(c.times * c.seconds for c in alike),
            "longest": max(reversed(alike), key=lambda c: c.times * c.seconds).op_name,
        }
        for key, alike in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])
