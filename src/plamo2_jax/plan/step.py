"""A compiled program of a run, read: memory by kind, collectives, cycles, and the step time they add up to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from plamo2_jax.plan.chips import Chip, chip_of
from plamo2_jax.plan.collectives import Collective, Place, Slice, collectives, is_collective
from plamo2_jax.plan.compiler import first_line
from plamo2_jax.plan.cost import Operation, operation_of
from plamo2_jax.plan.hlo import Module, parse_module
from plamo2_jax.plan.memory import chip_bytes, memory_of, parse_overflow
from plamo2_jax.plan.predict import by_part, operation_seconds, part, phase, times, utilization
from plamo2_jax.plan.program import Program
from plamo2_jax.plan.schedule.dump import Schedules

_MOST_OPERATIONS = 30


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What the compiler says of one program on a slice; plain data. Bytes and seconds are of one chip and one call."""

    device: str
    """Device kind."""
    devices: int
    mesh: dict[str, int]
    tokens: int
    """Of all devices."""
    flops: float
    """The model's, of all devices."""
    arguments: dict[str, int]
    """Bytes by kind, without padding."""
    hbm_available: int
    hbm_needed: int
    """More than is available: the program does not fit, and of what follows nothing is known."""
    seconds_to_trace: float
    seconds_to_compile: float
    cpu_seconds_to_compile: float
    """Of all cores: what a busy machine does not change."""
    libtpu: str = ""
    """Version of the compiler."""
    error: str | None = None
    """Why it does not compile."""
    memory: dict[str, int] | None = None
    cycles: int = 0
    """Scheduled, collectives left out."""
    unknown: tuple[str, ...] = ()
    """Kernels whose cycles could not be counted."""
    sparsecore: tuple[str, ...] = ()
    """Operations on the SparseCore: their bytes are counted, their cycles the compiler does not tell."""
    rematerialised: int = 0
    """Operations that the compiler repeats of its own accord to save memory."""
    times: dict[str, float] | None = None
    parts: dict[str, dict[str, float]] | None = None
    """Seconds by part of the model and phase of the step."""
    collectives: tuple[dict[str, Any], ...] = ()
    operations: tuple[dict[str, Any], ...] = ()
    """The longest ones."""

    @property
    def fits(self) -> bool:
        """Whether it compiles and has room."""
        return self.error is None and self.hbm_needed <= self.hbm_available

    @property
    def seconds(self) -> float:
        """Predicted, if everything overlaps."""
        return max(self.times[name] for name in ("compute", "hbm", "ici", "dcn"))

    @property
    def mfu(self) -> float:
        """Bound on model FLOPs utilization."""
        return utilization(self.flops, self.seconds, self.devices, chip_of(self.device))

    @property
    def serial_mfu(self) -> float:
        """The same if nothing overlaps."""
        return utilization(self.flops, self.times["serial"], self.devices, chip_of(self.device))


def plan_step(program: Program, dump: Path) -> StepPlan:
    """Compile a program and read what comes out.

    Args:
        program: from `plan.program`, over devices of a topology.
        dump: the folder that the process was told to dump schedules to.
    """
    devices = list(program.mesh.devices.flat)
    chip = chip_of(devices[0].device_kind)
    arguments = {kind: chip_bytes(tree) for kind, tree in program.parts.items()}
    begin = time.perf_counter()
    lowered = program.trace().lower()
    traced = time.perf_counter()
    facts = {
        "device": chip.kind,
        "devices": len(devices),
        "mesh": dict(program.mesh.shape),
        "tokens": program.tokens,
        "flops": program.flops,
        "arguments": arguments,
        "hbm_available": round(chip.hbm_bytes),
        "seconds_to_trace": traced - begin,
    }
    used = time.process_time()
    try:
        compiled = lowered.compile()
    except Exception as error:  # The compiler's refusal is an answer, whatever its type.
        facts |= {
            "seconds_to_compile": time.perf_counter() - traced,
            "cpu_seconds_to_compile": time.process_time() - used,
        }
        overflow = parse_overflow(str(error))
        if overflow is None:
            return StepPlan(**facts, hbm_needed=0, error=first_line(error))
        facts["hbm_available"] = overflow.available
        return StepPlan(**facts, hbm_needed=overflow.needed)
    facts |= {"seconds_to_compile": time.perf_counter() - traced, "cpu_seconds_to_compile": time.process_time() - used}
    module = parse_module(compiled.as_text())
    parameters = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(program.parts["parameters"])]
    memory = memory_of(module, compiled.memory_analysis(), arguments, parameters, facts["hbm_available"])
    return StepPlan(
        **facts,
        hbm_needed=memory.used,
        memory={**dataclasses.asdict(memory), "used": memory.used, "other_temporaries": memory.other_temporaries},
        **read(module, Schedules(dump), chip, devices),
    )


def read(module: Module, schedules: Schedules, chip: Chip, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """The fields of a StepPlan that come from the compiled program."""
    topology = Slice(chip, tuple(Place(getattr(d, "slice_index", 0) or 0, tuple(d.coords)) for d in devices))
    moved = collectives(module, topology)
    operations, unknown = [], []
    for instruction, computation, repeated in module.executed():
        if is_collective(module, instruction):
            continue
        operation = operation_of(module, instruction, computation, repeated, schedules, chip)
        operations.append(operation)
        if operation.kind == "kernel" and operation.bundles is None:
            unknown.append(operation.name)
    longest = sorted(operations, key=lambda o: -max(operation_seconds(o, chip)))[:_MOST_OPERATIONS]
    found = times(operations, moved, chip)
    return {
        "cycles": sum(o.times * o.cycles for o in operations),
        "unknown": tuple(unknown),
        "sparsecore": tuple(o.name for o in operations if o.kind == "sparsecore"),
        "rematerialised": sum(".remat" in o.name for o in operations),
        "times": {**dataclasses.asdict(found), "limit": found.limit},
        "parts": by_part(operations, chip),
        "collectives": tuple(_by_kind(moved)),
        "operations": tuple(_row(o, chip) for o in longest),
    }


def _row(o: Operation, chip: Chip) -> dict[str, Any]:
    seconds, waiting = operation_seconds(o, chip)
    row = dataclasses.asdict(o)
    return {**row, "part": part(o), "phase": phase(o), "seconds": seconds, "hbm_seconds": waiting}


def _by_kind(moved: Sequence[Collective]) -> list[dict[str, Any]]:
    """Sums by kind, size of the group and links, the longest first; with the one that takes most."""
    sums: dict[tuple, dict[str, Any]] = {}
    largest: dict[tuple, float] = {}
    for c in moved:
        key = (c.kind, c.group, c.links, c.asynchronous)
        empty = {"count": 0, "bytes": 0.0, "seconds": 0.0, "longest": ""}
        row = sums.setdefault(key, dict(zip(("kind", "group", "links", "asynchronous"), key, strict=True)) | empty)
        row["count"] += c.times
        row["bytes"] += c.times * c.wire_bytes
        row["seconds"] += c.times * c.seconds
        if c.times * c.seconds >= largest.get(key, 0.0):
            largest[key], row["longest"] = c.times * c.seconds, c.op_name
    return sorted(sums.values(), key=lambda row: -row["seconds"])
