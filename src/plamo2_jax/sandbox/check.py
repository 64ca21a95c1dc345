"""Whether a program passes tests: program and tests each in a fenced process of their own, which exchange plain values alone."""

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

from plamo2_jax.sandbox import warden
from plamo2_jax.sandbox.fence import AS_NOBODY, IN_USER_NAMESPACE, UNFENCED, UNFENCED_AS_NOBODY


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may spend, and what its tests may."""

    seconds: float = 5.0
    """By the clock, for both; of processor time each, the next whole second."""
    memory: int = 512 << 20
    """Bytes of address space."""
    output: int = 1 << 20
    """Bytes of a file that it writes."""


class SandboxError(ValueError):
    """There is no fence for programs on this system; the message says why, and what can be done."""


def passes(
    program: str,
    tests: str,
    limits: Limits | None = None,
    *,
    names: Collection[str] = (),
    allow_unfenced: bool = False,
) -> bool:
    """Return whether tests of a Python program run to their end, without an exception and within the limits.

    The tests call the program's functions and classes by their names. See docs/post_training.md for what they can and cannot do.

    Args:
        program: Python source that nobody has read.
        tests: Python source, such as `assert f(1) == 2`.
        limits: what both may spend; none: the defaults.
        names: functions of the program that the tests call although Python's builtins have the same names, such as `sum`.
        allow_unfenced: where this system has no fence, run with limits alone: the program can then read what this user can read, and
            reach the network.

    Raises:
        SandboxError: there is no fence, and `allow_unfenced` is false.
    """
    kind, problem = _best_fence()
    if problem and not allow_unfenced:
        raise SandboxError(problem)
    if problem:
        kind = _best_without()
    said = _run(program, tests, limits or Limits(), kind, names)
    if said[:1] == warden.BROKEN:
        raise SandboxError(_no_fence(said[1:].decode(errors="replace")))
    return said == warden.PASSED


def fence_problem() -> str | None:
    """Return why this system has no fence for programs, in one sentence; None where it has one."""
    return _best_fence()[1]


def cuts_network() -> bool:
    """Return whether programs run without a network: whether there is a fence."""
    return fence_problem() is None


# What must hold in a fence: right programs pass, wrong ones do not, and there is nothing to find.
_RIGHT = """
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
def _best_fence() -> tuple[int | None, str | None]:
    """The kind of fence that works here, or why none does."""
    problem = f"Linux is needed, and this is {sys.platform}"
    if sys.platform == "linux":
        places = {f"/{Path(base).parts[1]}" for base in (sys.base_prefix, sys.base_exec_prefix)}
        for kind in (AS_NOBODY, IN_USER_NAMESPACE) if os.geteuid() == 0 else (IN_USER_NAMESPACE,):
            reason = _fault(kind, f"PLACES = {places!r}\n{_RIGHT}", "assert set(outside()) <= {'ld.so.cache'}")
            if reason is None:
                return kind, None
            problem = reason
    return None, _no_fence(problem)


@functools.cache
def _best_without() -> int:
    """The kind of run without a fence in which programs find their libraries: nobody cannot read those in root's home."""
    reason = None
    for kind in (UNFENCED_AS_NOBODY, UNFENCED) if os.geteuid() == 0 else (UNFENCED,):
        reason = _fault(kind, _RIGHT, "")
        if reason is None:
            return kind
    raise SandboxError(f"programs of others cannot run here, even without a fence: {reason}")


def _fault(kind: int, program: str, tests: str) -> str | None:
    """What is wrong with a kind of fence; None where right programs pass in it, wrong ones do not, and `tests` do."""
    limits = Limits(seconds=60.0)
    said = _run(program, f"assert double([1, 2.5]) == [2, 5]\n{tests}", limits, kind)
    if said == warden.PASSED and _run(program, "assert double([1]) == [1]", limits, kind) == warden.FAILED:
        return None
    return (
        said[1:].decode(errors="replace")
        or "Python's standard library cannot be read in it, or more can be done than should"
    )


def _no_fence(problem: str) -> str:
    return (
        f"this system cannot fence in programs of others ({problem[:100]}): the rule code needs Linux namespaces. Run as root or as a user "
        "who may create user namespaces (in a container, allow unshare and mount), or set allow_unfenced_code to let programs do what "
        "this user can"
    )


def _run(program: str, tests: str, limits: Limits, kind: int, names: Collection[str] = ()) -> bytes:
    """What the tests' process says at its end; nothing where it was ended."""
    texts = program.encode("utf-8", "surrogatepass"), json.dumps({"tests": tests, "names": list(names)}).encode()
    for _ in range(2):
        # Again where the warden was killed just now, or with the check.
        started, said = _try(*texts, limits, kind)
        if started:
            return said
    raise SandboxError("the process that starts programs of others was killed twice: is there memory left?")


def _try(program: bytes, tests: bytes, limits: Limits, kind: int) -> tuple[bool, bytes]:
    """Whether a check was begun, and what the tests' process said."""
    end, said = time.monotonic() + limits.seconds + 10.0, b""
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        for pair in pairs:
            for one in pair:
                stack.enter_context(one)
        # One end of each is ours, save of the channel between program and tests.
        (leash, leash_end), (source, source_end), (verdict, verdict_end), channel = pairs
        theirs = [leash_end, source_end, channel[0], verdict_end, channel[1]]
        _warden.send(warden.REQUEST.pack(limits.seconds, limits.memory, limits.output, kind), theirs)
        for one in theirs:
            one.close()
        with contextlib.suppress(OSError):  # Where a process is gone, there is no verdict.
            for one, content in ((source, program), (verdict, tests)):
                one.settimeout(max(0.1, end - time.monotonic()))
                one.sendall(content)
                one.shutdown(socket.SHUT_WR)
            verdict.settimeout(max(0.1, end - time.monotonic()))
            said = verdict.recv(2000)
        leash.settimeout(1.0)
        with contextlib.suppress(OSError):
            return leash.recv(1) != b"", said
    return False, said


class _Warden:
    """The process of `warden`, started when it is first needed, and again where it is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, request: bytes, sockets: list[socket.socket]) -> None:
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end()
            numbers = [one.fileno() for one in sockets]
            if self._process is None:
                self._begin()
            try:
                socket.send_fds(self._requests, [request], numbers)
            except OSError:  # It ended just now.
                self._end()
                self._begin()
                socket.send_fds(self._requests, [request], numbers)

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._end()

    def _begin(self) -> None:
        root = str(Path(__file__).parents[2])
        run = f"import sys; sys.path.insert(0, {root!r}); from plamo2_jax.sandbox.warden import main; sys.path.pop(0); main()"
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", run],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )

    def _end(self) -> None:
        self._requests.close()
        self._process.kill()
        self._process.wait()
        self._process = None


_warden = _Warden()
atexit.register(_warden.close)
