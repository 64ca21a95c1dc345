"""A process in which libtpu compiles: `Worker` starts it and asks it, `main` answers in it.

libtpu reads its flags, and with them the folder that it dumps schedules to, once, when it is loaded: hence a process of its own. Each
question and each answer is one line of JSON (wire.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.compiler import environment
from plamo2_jax.plan.wire import decode, encode, name_of, named

_Answer = TypeVar("_Answer")


class Worker:
    """A process that compiles, a context manager.

    Args:
        environment_for: returns the environment of the process, given the folder for schedules.
    """

    def __init__(self, environment_for: Callable[[Path], Mapping[str, str]] = environment) -> None:
        self._environment_for = environment_for
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Worker:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="plamo2-plan-"))
        self._log = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "plamo2_jax.plan.worker", folder],
            env=dict(self._environment_for(Path(folder))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
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

    def call(self, function: Callable[[Any, Path], _Answer], request: Any) -> _Answer:
        """Return `function(request, dump)` as computed in the process; `dump` is the folder for schedules, empty at first.

        Args:
            function: a function of a module of this package.
            request: what `wire.encode` can send; the answer must be, too.

        Raises:
            ValueError: the function raised it.
            RuntimeError: the process ended; the message has the end of its log.
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
    """Return the answer to one question, both as JSON."""
    question = json.loads(line)
    for path in dump.iterdir():
        path.unlink()
    try:
        found = encode(named(question["function"], callable)(decode(question["request"]), dump))
    except ValueError as error:
        return json.dumps({"refused": str(error)})
    return json.dumps({"answer": found})


def main() -> None:
    """Answer questions until there are no more. What libraries print to standard output goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(answer(line, Path(sys.argv[1])), file=out, flush=True)


if __name__ == "__main__":
    main()
