"""Render an untrusted chat template in a separate process, with bounded time and memory.

A template is a program: `{{ 3 ** 10 ** 9 }}` does not end, and `{{ 'a' * 10 ** 10 }}` takes all memory. Both happen at compile time,
and no Python thread can interrupt them. The process imports only jinja2 and lives as long as the template is used, so each rendering costs
one message over a pipe. It is started as a new program and not forked, because a process that runs JAX must not fork.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from plamo2_jax.tokenizer import template_sandbox
from plamo2_jax.tokenizer.template_sandbox import (
    MEMORY_BYTES,
    OVERRUN,
    RENDERED,
    TemplateOverrun,
    TemplateProblem,
    cpu_seconds,
    read_message,
    shorten,
    write_message,
)

# Wall-clock limit for a process that is stopped or gets no CPU. The process itself limits its CPU time.
_WALL_SECONDS = 120
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL")


class ProcessTemplate:
    """A template that another process compiles and renders, with the interface of `template_sandbox.SandboxedTemplate`.

    It is thread-safe. If a rendering kills the process, the next rendering starts a new one.

    Args:
        source: Jinja source.

    Raises:
        TemplateProblem: `source` cannot be compiled within the limits.
    """

    def __init__(self, source: str):
        self._source = source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._finalizer: weakref.finalize | None = None
        with self._lock:
            self._start()

    def render(self, variables: dict[str, Any]) -> str:
        """Return the rendered text.

        Args:
            variables: Variables of the template: None, bool, int, float, str, and lists and dicts of them.

        Raises:
            TemplateProblem: The template fails, refuses the conversation, or exceeds a limit.
        """
        try:
            request = marshal.dumps(variables)
        except ValueError as error:
            raise TemplateProblem(f" fails on this conversation: {shorten(error)}") from None
        with self._lock:
            # After a fork, both processes share the pipes, but only one of them may write.
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            return self._ask(request, " fails on this conversation")

    def _start(self) -> None:
        program = Path(template_sandbox.__file__)
        path = [os.path.abspath(entry) for entry in sys.path if entry]
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONPATH": os.pathsep.join(path)},
            cwd="/",
            start_new_session=True,
        )
        self._owner = os.getpid()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _end, self._process, self._owner)
        self._ask(marshal.dumps(self._source), " cannot be compiled")

    def _ask(self, request: bytes, what: str) -> str:
        process, answer = self._process, None
        try:
            write_message(process.stdin, request)
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            if poll.poll(1000 * _WALL_SECONDS):
                answer = read_message(process.stdout)
        except BrokenPipeError:
            pass
        except BaseException:
            # Ctrl-C came between request and answer. The next request must not read this answer.
            _end(process, self._owner)
            raise
        if answer is None:
            _end(process, self._owner)
            raise TemplateOverrun(f"{what}: {_ending(process.returncode, cpu_seconds(len(request)))}")
        text = answer[1:].decode("utf-8", "surrogatepass")
        if answer[:1] != RENDERED:
            raise TemplateOverrun(text) if answer[:1] == OVERRUN else TemplateProblem(text)
        return text


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return  # After a fork, the process belongs to the parent.
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        # Closing flushes into a pipe without a reader.
        with contextlib.suppress(OSError):
            pipe.close()


def _ending(status: int, seconds: float) -> str:
    if status == -signal.SIGPROF:
        return f"it needs more than {seconds:.1f} s of CPU time, which is the limit"
    if status < 0:
        name = signal.Signals(-status).name
        return f"the rendering process was killed ({name}): the limits are {seconds:.1f} s and {MEMORY_BYTES >> 20} MiB"
    return f"the rendering process ended with status {status}"
