"""Compile programs in a process of its own: `python -m plamo2_jax.plan.schedule.worker DUMP`, started by `run.py`.

Reads one request a line from standard input, writes one answer a line to standard output, both JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.layout import Format, Layout
from jax.extend.core import ClosedJaxpr
from jax.sharding import SingleDeviceSharding

from plamo2_jax.plan.chips import chip_of
from plamo2_jax.plan.compiler import first_line, topology_devices
from plamo2_jax.plan.cost import Cost, program_cost
from plamo2_jax.plan.hlo import parse_module
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_jax.plan.schedule.kernel_traffic import kernel_calls
from plamo2_jax.plan.schedule.ssd import SsdProgram


class Compiled(NamedTuple):
    """A program as traced and as compiled."""

    jaxpr: ClosedJaxpr
    executable: jax.stages.Compiled


def compile_for(function: Callable, operands: Sequence, device: jax.Device, layouts: str, dump: Path) -> Compiled:
    """Compile a function for one device of a slice.

    Args:
        function: of positional arrays.
        operands: their shapes.
        device: of a topology.
        layouts: of arguments and results: "default", what an array has that nobody asked anything of, or "auto", the compiler's choice.
        dump: the folder the process was told to dump to; it is emptied first.
    """
    for path in dump.iterdir():
        path.unlink()
    sharding = SingleDeviceSharding(device)
    form = Format(Layout.AUTO, sharding) if layouts == "auto" else sharding
    traced = jax.jit(function, in_shardings=form, out_shardings=form).trace(*operands)
    return Compiled(traced.jaxpr, traced.lower().compile())


def compiled_cost(compiled: Compiled, device: jax.Device, dump: Path) -> Cost:
    """What it costs, by its text and by what the compiler dumped.

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


def answer(request: dict[str, Any], dump: Path) -> dict[str, Any]:
    """The cost as plain data; {"error": ...} where the program does not compile, {"refused": ...} where the request is wrong."""
    try:
        device = topology_devices(request["topology"])[0]
        chip_of(device.device_kind)
        function, operands = SsdProgram(**request["program"]).build()
    except ValueError as error:
        return {"refused": str(error)}
    try:
        compiled = compile_for(function, operands, device, request["layouts"], dump)
    except Exception as error:  # The compiler's refusal is an answer, whatever its type: Mosaic, XLA and the kernel raise different ones.
        return {"error": f"does not compile: {first_line(error)}"}
    try:
        return {"cost": dataclasses.asdict(compiled_cost(compiled, device, dump))}
    except ValueError as error:
        return {"error": f"compiles, but {first_line(error)}"}


def main() -> None:
    """Answer requests until there are no more."""
    dump = Path(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), dump)), flush=True)


if __name__ == "__main__":
    main()
