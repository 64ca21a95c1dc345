"""Compile a kernel's program for one device of a slice and return its cost. `compile_ssd` runs in the compiler process (plan/worker.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
from jax.experimental.layout import Format, Layout
from jax.extend.core import ClosedJaxpr
from jax.sharding import SingleDeviceSharding

from plamo2_jax.plan.chips import chip_of
from plamo2_jax.plan.compiler import first_line, libtpu_version, topology_devices
from plamo2_jax.plan.hlo import parse_module
from plamo2_jax.plan.schedule.cost import Cost, program_cost
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_jax.plan.schedule.kernel_traffic import kernel_calls
from plamo2_jax.plan.schedule.ssd import SsdProgram

Layouts = Literal["default", "auto"]
"""Layouts of arguments and results. default: those that arrays have by default. auto: the compiler chooses, as it does inside a model."""


@dataclasses.dataclass(frozen=True)
class SsdRequest:
    """A program to compile for one device of a slice."""

    topology: str
    """Name of the slice, such as v5p:2x2x1."""
    program: SsdProgram
    layouts: Layouts = "default"


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """The cost of one program, or the reason why it has none."""

    program: SsdProgram
    layouts: Layouts
    libtpu: str
    """Version of the compiler."""
    cost: Cost | None
    error: str | None = None
    """Why it does not compile, or why its cost is not known."""


class Compiled(NamedTuple):
    """A traced and compiled program."""

    jaxpr: ClosedJaxpr
    executable: jax.stages.Compiled


def compile_ssd(request: SsdRequest, dump: Path) -> KernelPlan:
    """Compile a scan and return its cost.

    Args:
        request: what to compile.
        dump: the folder to which the process dumps schedules.

    Raises:
        ValueError: there is no such slice, or the program's description is wrong.
    """
    function, operands = request.program.build()
    device = topology_devices(request.topology)[0]
    chip_of(device.device_kind)  # Refuses a chip without published figures before anything is compiled.
    cost = error = None
    try:
        compiled = compile_for(function, operands, device, request.layouts)
    except (
        Exception
    ) as problem:  # The compiler's refusal is a result. Mosaic, XLA and the kernel raise different types.
        error = f"does not compile: {first_line(problem)}"
    else:
        try:
            cost = compiled_cost(compiled, device, dump)
        except ValueError as problem:
            error = f"compiles, but {first_line(problem)}"
    return KernelPlan(request.program, request.layouts, libtpu_version(), cost, error)


def compile_for(function: Callable, operands: Sequence, device: jax.Device, layouts: Layouts = "default") -> Compiled:
    """Compile a function for one device of a slice.

    Args:
        function: takes positional arrays.
        operands: the arrays' shapes and dtypes.
        device: from `topology_devices`.
        layouts: layouts of arguments and results.
    """
    sharding = SingleDeviceSharding(device)
    form = Format(Layout.AUTO, sharding) if layouts == "auto" else sharding
    traced = jax.jit(function, in_shardings=form, out_shardings=form).trace(*operands)
    return Compiled(traced.jaxpr, traced.lower().compile())


def compiled_cost(compiled: Compiled, device: jax.Device, dump: Path) -> Cost:
    """Return the cost of a compiled program, from its text and from the schedules that the compiler dumped.

    Raises:
        ValueError: a trip count or the traffic of a kernel depends on data.
    """
    return program_cost(
        parse_module(compiled.executable.as_text()),
        Schedules(dump),
        kernel_calls(compiled.jaxpr),
        chip_of(device.device_kind),
        compiled.executable.memory_analysis().temp_size_in_bytes,
    )
