"""Compile a kernel's program for one device of a slice and return its cost. `compile_ssd` runs in the compiler process (plan/worker.py)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.chips import chip_of
from plamo2_jax.plan.compiler import first_line, libtpu_version, topology_devices
from plamo2_jax.plan.hlo import parse_module
from plamo2_jax.plan.schedule.cost import Cost, program_cost
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_jax.plan.schedule.kernel_traffic import kernel_calls
from plamo2_jax.plan.schedule.ssd import SsdProgram
from plamo2_kernels.errors import ImplementationError

Layouts = Literal["default", "auto"]
"""Layouts of arguments and results. default: the default layout of arrays. auto: the compiler chooses, as inside a model."""


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
    """Reason why it does not compile, or why its cost is not known."""


def compile_ssd(request: SsdRequest, dump: Path) -> KernelPlan:
    """Compile a scan and return its cost. The process must dump schedules to the folder `dump`.

    Raises:
        PlamoError: there is no such preset, slice or chip.
    """
    function, operands = request.program.build()
    device = topology_devices(request.topology)[0]
    chip_of(device.device_kind)  # Refuses a chip without published figures before anything is compiled.
    plan = functools.partial(KernelPlan, request.program, request.layouts, libtpu_version())
    try:
        traced = trace_for(function, operands, device, request.layouts)
    except ImplementationError as problem:
        return plan(None, f"does not compile: {problem}")
    try:
        compiled = traced.lower().compile()
    except Exception as problem:  # The compiler's refusal is a result. Mosaic and XLA raise different types.
        return plan(None, f"does not compile: {first_line(problem)}")
    try:
        return plan(compiled_cost(traced, compiled, device, dump))
    except PlamoError as problem:
        return plan(None, f"compiles, but {problem}")


def trace_for(
    function: Callable, operands: Sequence, device: jax.Device, layouts: Layouts = "default"
) -> jax.stages.Traced:
    """Trace a function of positional arrays, given their shapes and dtypes, for one device of a slice."""
    sharding = SingleDeviceSharding(device)
    form = Format(Layout.AUTO, sharding) if layouts == "auto" else sharding
    return jax.jit(function, in_shardings=form, out_shardings=form).trace(*operands)


def compiled_cost(traced: jax.stages.Traced, compiled: jax.stages.Compiled, device: jax.Device, dump: Path) -> Cost:
    """Return the cost of a compiled program, from its text and from the schedules that the compiler dumped.

    Raises:
        PlamoError: a trip count or the traffic of a kernel depends on data.
    """
    module, calls, chip = parse_module(compiled.as_text()), kernel_calls(traced.jaxpr), chip_of(device.device_kind)
    return program_cost(module, Schedules(dump), calls, chip, compiled.memory_analysis().temp_size_in_bytes)
