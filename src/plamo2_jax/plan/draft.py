"""Compile a program up to the assignment of buffers, without machine code, and estimate its time from the costs of other programs.

At this point the program has its final operations, order, collectives and memory. Only the cycles of operations are missing (costs.py).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import jax

from plamo2_jax.plan.buffers import dump_options, program_text, read_buffers
from plamo2_jax.plan.chips import chip_of
from plamo2_jax.plan.collectives import Place, Slice, is_collective
from plamo2_jax.plan.compiler import first_line, topology_devices
from plamo2_jax.plan.costs import Costs
from plamo2_jax.plan.hlo import Computation, Module, parse_module
from plamo2_jax.plan.memory import Memory, Overflow, carried, parse_overflow
from plamo2_jax.plan.program import train_program
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.roofline import operation_seconds
from plamo2_jax.plan.step import StepPlan, facts_of, figures, topology_of

_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Draft:
    """A train step with its final operations and buffers, but without machine code. Bytes are for one chip."""

    facts: dict[str, Any]
    """Fields of `StepPlan` that do not need the compiled program."""
    parameter_shapes: tuple[tuple[int, ...], ...]
    """Shapes of one chip's shards of the parameters."""
    places: tuple[tuple[int, tuple[int, ...]], ...]
    """Slice and coordinates of each chip."""
    text: str = ""
    """The program; empty if it does not compile or does not fit."""
    argument_bytes: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    hbm_needed: int = 0
    """Needed bytes of a program that does not fit."""
    error: str | None = None


def compile_draft(request: Request, dump: Path) -> Draft:
    """Compile the train step of a request up to the assignment of buffers.

    The compiler cannot be stopped there. It goes on to generate code in a thread of this process until the caller ends the process.

    Raises:
        PlamoError: there is no such slice, or the run cannot be divided over it.
        ImplementationError: a kernel cannot run with the shapes of the model.
    """
    devices = topology_devices(request.topology, request.config.mesh.slices)
    program = train_program(request.config, devices, request.kernels)
    begin, used = time.perf_counter(), time.process_time()
    lowered = program.trace().lower()
    traced = time.perf_counter() - begin
    problems: list[Exception] = []

    def run() -> None:
        try:
            lowered.compile(compiler_options=dump_options(dump))
        except Exception as problem:  # The compiler's refusal is a result, whatever its type.
            problems.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    text = ""
    while not text:
        alive = thread.is_alive()
        text = program_text(dump)
        if not alive and not text:
            break
        time.sleep(_POLL_SECONDS)
    facts = facts_of(program, traced, time.perf_counter() - begin - traced, time.process_time() - used)
    shapes = tuple(
        tuple(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(program.parts["parameters"])
    )
    topology = topology_of(list(program.mesh.devices.flat))
    common = {
        "parameter_shapes": shapes,
        "places": tuple((place.slice, place.coords) for place in topology.places),
    }
    if not text:
        return _refused(facts, common, problems)
    return Draft(facts, **common, text=text, **read_buffers(dump))


def _refused(facts: dict[str, Any], common: dict[str, Any], problems: list[Exception]) -> Draft:
    problem = problems[0] if problems else RuntimeError("the compiler wrote no program")
    overflow: Overflow | None = parse_overflow(str(problem))
    if overflow is None:
        return Draft(facts, **common, error=first_line(problem))
    return Draft(facts | {"hbm_available": overflow.available}, **common, hbm_needed=overflow.needed)


def with_wrapped_names(module: Module) -> Module:
    """Name asynchronous operations after the operation that they wrap, as the text of a complete program does.

    `async-start`, whose computation is one slice, becomes `slice-start` with the attributes of the slice.
    """
    return dataclasses.replace(
        module, computations={name: _wrapped(module, scope) for name, scope in module.computations.items()}
    )


def _wrapped(module: Module, scope: Computation) -> Computation:
    renamed: Computation = {}
    for name, each in scope.items():
        if each.op == "async-start":
            inner = next(i for i in module.computations[each.called("calls")].values() if i.root)
            each = dataclasses.replace(each, op=f"{inner.op}-start", attributes=inner.attributes)
        elif each.op in ("async-update", "async-done"):
            start = renamed[each.operands[0]].op.rpartition("-")[0]
            each = dataclasses.replace(each, op=f"{start}-{each.op.rpartition('-')[2]}")
        renamed[name] = each
    return renamed


def estimate(draft: Draft, costs: Costs, code_bytes: int = 0) -> StepPlan:
    """Return the plan of a draft, with cycles from the costs of completely compiled programs.

    Args:
        code_bytes: HBM bytes of the machine code, from a completely compiled program.
    """
    if draft.error is not None or not draft.text:
        return StepPlan(**draft.facts, hbm_needed=draft.hbm_needed, error=draft.error)
    module, chip = with_wrapped_names(parse_module(draft.text)), chip_of(draft.facts["device"])
    topology = Slice(chip, tuple(Place(index, tuple(coords)) for index, coords in draft.places))
    operations, seconds, scaled = [], 0.0, 0.0
    for instruction, computation, times in module.executed():
        if is_collective(module, instruction):
            continue
        operation, known = costs.operation(module, instruction, computation, times, chip)
        operations.append(operation)
        longest = max(operation_seconds(operation, chip))
        seconds += longest
        scaled += 0.0 if known else longest
    kept, gradients = carried(module, {tuple(shape) for shape in draft.parameter_shapes})
    memory = Memory(
        draft.facts["hbm_available"],
        draft.facts["arguments"],
        draft.argument_bytes,
        kept,
        gradients,
        draft.temporary_bytes,
        draft.output_bytes,
        code_bytes,
    )
    return StepPlan(
        **draft.facts,
        hbm_needed=memory.used,
        memory=memory.as_dict(),
        scaled=scaled / seconds if seconds else 0.0,
        **figures(module, operations, chip, topology),
    )
