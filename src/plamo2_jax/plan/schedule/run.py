"""Ask the worker process: programs in, costs out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.compiler import environment, libtpu_version
from plamo2_jax.plan.cost import Cost, Kernel, Operation
from plamo2_jax.plan.schedule.ssd import SsdProgram


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one program."""

    program: SsdProgram
    layouts: str
    cost: Cost | None
    error: str | None = None
    """Why it does not compile."""


class Compiler:
    """A process in which libtpu compiles for a slice, a context manager.

    Raises:
        ValueError: libtpu is not installed.
    """

    def __init__(self, topology: str) -> None:
        self.libtpu = libtpu_version()
        self.topology = topology
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Compiler:
        # Schedules are some MB; the worker empties the folder before each program.
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="plamo2-plan-"))
        self._noise = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "plamo2_jax.plan.schedule.worker", folder],
            env=environment(Path(folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
        )
        self._stack.callback(self._end)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def cost(self, program: SsdProgram, layouts: str = "default") -> Result:
        """Compile a program.

        Raises:
            ValueError: there is no such slice, or the program's description is wrong.
            RuntimeError: the process died; the message has its last words.
        """
        request = {"topology": self.topology, "program": dataclasses.asdict(program), "layouts": layouts}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._noise.seek(0)
            raise RuntimeError(f"the process that compiles has ended: {self._noise.read()[-2000:]}")
        answer = json.loads(line)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        if "error" in answer:
            return Result(program, layouts, None, answer["error"])
        return Result(program, layouts, _cost(answer["cost"]))


def _cost(data: dict[str, Any]) -> Cost:
    return Cost(
        Chip(**data["chip"]),
        tuple(Operation(**operation) for operation in data["operations"]),
        tuple(Kernel(**{**kernel, "grid": tuple(kernel["grid"])}) for kernel in data["kernels"]),
        data["temp_bytes"],
        data["vmem_bytes"],
    )
