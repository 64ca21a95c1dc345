"""Checks whether a program passes tests. Both run in isolated processes that exchange plain values only."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

from plamo2_jax.errors import PlamoError
from plamo2_jax.sandbox import fork_server
from plamo2_jax.sandbox.isolation import AS_NOBODY, IN_USER_NAMESPACE, UNISOLATED, UNISOLATED_AS_NOBODY


@dataclasses.dataclass(frozen=True)
class Limits:
    """Resource limits of a program and of its tests."""

    seconds: float = 5.0
    """Wall-clock time of both together; each also gets at most this much processor time, rounded up."""
    memory: int = 512 << 20
    """Address space of each process, in bytes."""
    output: int = 1 << 20
    """Largest file that can be written, in bytes; the private temporary folder holds 16 times as much."""


class SandboxError(PlamoError):
    """Programs cannot be isolated on this system; the message says why and how to fix it."""


def passes(
    program: str,
    tests: str,
    limits: Limits | None = None,
    *,
    names: Collection[str] = (),
    allow_unisolated: bool = False,
) -> bool:
    """Return whether the tests of a Python program run to their end without an exception and within the limits.

    The tests use the program's functions and classes by name. docs/post_training.md lists what tests can do.

    Args:
        program: untrusted Python source.
        tests: Python source, such as `assert f(1) == 2`.
        limits: resource limits; None for the defaults.
        names: names of the program that would otherwise be Python's builtins, such as `sum`.
        allow_unisolated: if this system cannot isolate programs, run them with resource limits only. They can then read this user's files
            and use the network.

    Raises:
        SandboxError: this system cannot isolate programs, and `allow_unisolated` is false.
    """
    kind, problem = _best_isolation()
    if problem and not allow_unisolated:
        raise SandboxError(problem)
    if problem:
        kind = _best_without()
    message = _run(program, tests, limits or Limits(), kind, names)
    if message[:1] == fork_server.BROKEN:
        raise SandboxError(_not_isolated(message[1:].decode(errors="replace")))
    return message == fork_server.PASSED


def isolation_problem() -> str | None:
    """Return why this system cannot isolate programs, in one sentence, or None if it can. The first call runs a few test programs."""
    return _best_isolation()[1]


# A correct program, run once to verify the isolation: imports work, and nothing outside can be reached.
_CORRECT = """
import calendar, colorsys, csv, json, math, random, statistics, textwrap, typing
def double(x): return [math.floor(2 * one) for one in x]
def outside():
    import os, socket
    found = [name for name in os.listdir("/") if name not in ("dev", "etc", "lib", "lib64", "nix", "opt", "tmp", "usr")]
    found = [name for name in found if os.path.join("/", name) not in PLACES]
    found += os.listdir("/tmp") + (os.listdir("/etc") if os.path.isdir("/etc") else [])
    for attempt in (os.fork, socket.socket, lambda: open("/usr/lib/x", "w"), lambda: os.mkdir("/x"), lambda: os.listdir("/proc")):
        try:
            attempt()
            found.append(repr(attempt))
        except OSError:
            pass
    return found
"""


@functools.cache
def _best_isolation() -> tuple[int | None, str | None]:
    """Return the kind of isolation that works here, or None and the reason why none does."""
    problem = f"Linux is needed, and this is {sys.platform}"
    if sys.platform == "linux":
        if python := _python_below_tmp():
            return None, (
                f"this system cannot isolate untrusted programs: Python is in {python}, and an isolated program has a /tmp of its own. "
                "Use a Python outside /tmp, or set allow_unisolated_code to run programs with your own rights"
            )
        places = {f"/{Path(base).parts[1]}" for base in (sys.base_prefix, sys.base_exec_prefix)}
        for kind in (AS_NOBODY, IN_USER_NAMESPACE) if os.geteuid() == 0 else (IN_USER_NAMESPACE,):
            reason = _fault(kind, f"PLACES = {places!r}\n{_CORRECT}", "assert set(outside()) <= {'ld.so.cache'}")
            if reason is None:
                return kind, None
            problem = reason
    return None, _not_isolated(problem)


def _python_below_tmp() -> str | None:
    """Return the folder of this Python if it is below /tmp, where isolated programs cannot read its standard library."""
    bases = {sys.base_prefix, sys.base_exec_prefix}
    return next((base for base in bases if Path(os.path.realpath(base)).is_relative_to("/tmp")), None)


@functools.cache
def _best_without() -> int:
    """Return the kind to use without namespaces. The user nobody may be unable to read a Python in root's home."""
    reason = None
    for kind in (UNISOLATED_AS_NOBODY, UNISOLATED) if os.geteuid() == 0 else (UNISOLATED,):
        reason = _fault(kind, _CORRECT, "")
        if reason is None:
            return kind
    raise SandboxError(f"untrusted programs cannot run here, even without isolation: {reason}")


def _fault(kind: int, program: str, tests: str) -> str | None:
    """Return what is wrong with a kind of isolation, or None if correct programs pass, wrong programs fail and `tests` pass."""
    limits = Limits(seconds=60.0)
    message = _run(program, f"assert double([1, 2.5]) == [2, 5]\n{tests}", limits, kind)
    if message == fork_server.PASSED and _run(program, "assert double([1]) == [1]", limits, kind) == fork_server.FAILED:
        return None
    return message[1:].decode(errors="replace") or "the standard library cannot be read, or files outside can"


def _not_isolated(problem: str) -> str:
    return (
        f"this system cannot isolate untrusted programs ({problem[:100]}): isolation needs Linux namespaces. "
        "Run as root, or as a user who can create user namespaces (in a container, allow unshare and mount), "
        "or set allow_unisolated_code to run programs with your own rights"
    )


def _run(program: str, tests: str, limits: Limits, kind: int, names: Collection[str] = ()) -> bytes:
    """Return the last message of the tests' process; empty if it was killed."""
    texts = program.encode("utf-8", "surrogatepass"), json.dumps({"tests": tests, "names": list(names)}).encode()
    for _ in range(2):
        # Retry if the fork server was killed.
        started, message = _try(*texts, limits, kind)
        if started:
            return message
    raise SandboxError("the fork server of the sandbox was killed twice: free some memory and run the command again")


def _try(program: bytes, tests: bytes, limits: Limits, kind: int) -> tuple[bool, bytes]:
    """Return whether the check was started, and the last message of the tests' process."""
    end, message = time.monotonic() + limits.seconds + 10.0, b""
    with contextlib.ExitStack() as stack:
        pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(4)]
        # This process keeps one end of each pair, except of the channel between program and tests.
        (control, control_end), (source, source_end), (verdict, verdict_end), channel = pairs
        sent = [control_end, source_end, channel[0], verdict_end, channel[1]]
        _fork_server.send(fork_server.REQUEST.pack(limits.seconds, limits.memory, limits.output, kind), sent)
        for one in sent:
            one.close()
        with contextlib.suppress(OSError):  # A process that was killed gives no verdict.
            for one, content in ((source, program), (verdict, tests)):
                one.settimeout(max(0.1, end - time.monotonic()))
                one.sendall(content)
                one.shutdown(socket.SHUT_WR)
            verdict.settimeout(max(0.1, end - time.monotonic()))
            message = verdict.recv(2000)
        control.settimeout(1.0)
        with contextlib.suppress(OSError):
            return control.recv(1) != b"", message
    return False, message


class _ForkServer:
    """The fork server's process, started on first use and restarted if it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, request: bytes, sockets: list[socket.socket]) -> None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._restart()
            numbers = [one.fileno() for one in sockets]
            try:
                socket.send_fds(self._requests, [request], numbers)
            except OSError:  # It was killed just now.
                self._restart()
                socket.send_fds(self._requests, [request], numbers)

    def close(self) -> None:
        with self._lock:
            self._end()

    def _restart(self) -> None:
        self._end()
        root = str(Path(__file__).parents[2])
        run = f"import sys; sys.path.insert(0, {root!r}); from plamo2_jax.sandbox.fork_server import main; sys.path.pop(0); main()"
        self._requests, server_end = socket.socketpair()
        with server_end:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", run],
                stdin=server_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )

    def _end(self) -> None:
        if self._process is None:
            return
        self._requests.close()
        self._process.kill()
        self._process.wait()
        self._process = None


_fork_server = _ForkServer()
atexit.register(_fork_server.close)
