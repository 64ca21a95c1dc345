"""A process in which libtpu compiles: `Worker` starts it and sends requests, `main` answers them in the process.

libtpu has a process of its own because it reads its flags, which name the folder for schedules, only once, when it is loaded. Each request
and each answer is one line of JSON (wire.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.compiler import environment
from plamo2_jax.plan.wire import decode, encode, name_of, named
from plamo2_kernels.errors import ImplementationError

_Answer = TypeVar("_Answer")


class Worker:
    """A context manager for the process. `environment_for` returns its environment, given the folder for schedules."""

    def __init__(self, environment_for: Callable[[Path], Mapping[str, str]] = environment) -> None:
        self._environment_for = environment_for
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Worker:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="plamo2-plan-"))
        self._log = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        command = [sys.executable, "-m", "plamo2_jax.plan.worker", folder]
        variables, pipe = dict(self._environment_for(Path(folder))), subprocess.PIPE
        self._process = self._stack.enter_context(
            subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=self._log, text=True)
        )
        self._stack.callback(self._process.kill)
        return self

    def __exit__(self, *_) -> None:
        # A process that has ended did not read all of its input.
        with contextlib.suppress(BrokenPipeError):
            self._stack.close()

    def call(self, function: Callable[[Any, Path], _Answer], request: Any) -> _Answer:
        """Return `function(request, dump)`, computed in the process; `dump` is the folder for schedules, empty at first.

        Args:
            function: a function at the top level of a module of this package.
            request: a value that `wire.encode` can send. It must be able to send the result, too.

        Raises:
            PlamoError: the function raised PlamoError, or ImplementationError because a kernel cannot run.
            RuntimeError: the process ended, as it does after any other exception; the message has the end of its log.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"function": name_of(function), "request": encode(request)}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the compiler process has ended; its log ends with: {self._log.read()[-2000:]}")
        answer = json.loads(line)
        if "refused" in answer:
            raise PlamoError(answer["refused"])
        return decode(answer["answer"])


def answer(line: str, dump: Path) -> str:
    """Return the answer to one request, both as JSON."""
    call = json.loads(line)
    for path in dump.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        found = encode(named(call["function"], callable)(decode(call["request"]), dump))
    except (PlamoError, ImplementationError) as error:
        return json.dumps({"refused": str(error)})
    return json.dumps({"answer": found})


def main() -> None:
    """Answer requests until standard input ends."""
    # Only answers go to standard output. Text that libraries print there goes to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(answer(line, Path(sys.argv[1])), file=out, flush=True)


if __name__ == "__main__":
    main()
