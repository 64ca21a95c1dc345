"""Plan one program in a process of its own: `python -m plamo2_jax.plan.step_worker DUMP`, started by `steps.py`.

A pickled request on standard input, one line of JSON on standard output: a StepPlan, or {"refused": why}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import jax

from plamo2_jax.plan.compiler import topology_devices
from plamo2_jax.plan.memory import chip_bytes
from plamo2_jax.plan.program import Program, serving_program, train_program
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.step import plan_step


def build(request: Request, devices: list) -> Program:
    """The program that a request names."""
    if request.kind == "train":
        return train_program(request.config, devices, request.kernels)
    return serving_program(
        request.config, devices, rows=request.rows, tokens=request.context, decode=request.kind == "decode"
    )


def answer(request: Request, dump: Path) -> dict[str, Any]:
    """The plan as plain data."""
    try:
        if request.gpus:
            return {"arguments": argument_bytes(request)}
        devices = topology_devices(request.topology, request.config.mesh.slices)
        program = build(request, devices)
        return dataclasses.asdict(plan_step(program, dump))
    except ValueError as error:
        return {"refused": str(error)}


def argument_bytes(request: Request) -> dict[str, Any]:
    """Bytes of a train step's arguments by kind on one of as many stand-in devices as there are GPUs, as CPU's compiler confirms them."""
    program = train_program(request.config, jax.devices(), "xla")
    lowered = program.trace().lower()
    compiled = lowered.compile()
    kinds = {kind: chip_bytes(tree) for kind, tree in program.parts.items()}
    return {**kinds, "all": compiled.memory_analysis().argument_size_in_bytes}


def main() -> None:
    """Answer one request. What libraries print to standard output goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = pickle.loads(sys.stdin.buffer.read())
    print(json.dumps(answer(request, Path(sys.argv[1]))), file=out, flush=True)


if __name__ == "__main__":
    main()
