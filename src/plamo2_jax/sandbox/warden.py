"""A process that starts fenced processes, kept small and without secrets, since they are its copies.

It runs in an interpreter without packages and with an empty environment, imports what programs often import, and forks for every check: a
fork takes milliseconds, an interpreter tens of them. It never sees a program or a test: these come over sockets that only their own
process reads.

For a check, `_oversee` holds two processes, each below one that entered its fence: one runs the program, one the tests. When the other end
of the leash closes or the time is over, both are killed, and with them all that is in their process namespaces.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Callable

from plamo2_jax.sandbox import fence, program, verdict
from plamo2_jax.sandbox.channel import Gone, read_all, receive, send

_OFTEN = "bisect collections copy dataclasses datetime decimal fractions functools heapq itertools math random re statistics string typing"
"""Modules that programs often import: there without reading them for each."""
REQUEST = struct.Struct("=dqqB")
"""Seconds, bytes of memory, bytes of output, kind of fence; with it come five sockets, in `_oversee`'s order."""
PASSED, FAILED, BROKEN = b"+", b"-", b"!"
"""First byte of a verdict; after BROKEN comes why there is no fence."""


def main() -> None:
    """Start a check for every request on descriptor 0, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests = socket.socket(fileno=os.dup(0))
    for name in _OFTEN.split():
        importlib.import_module(name)
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST.size, 5)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            try:
                requests.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _oversee(REQUEST.unpack(request), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _oversee(
    limits: tuple[float, int, int, int], leash: int, program: int, program_channel: int, tests: int, tests_channel: int
) -> None:
    """Run one check, and end it."""
    seconds = limits[0]
    children = [
        _start(_run_program, limits, program, program_channel),
        _start(_run_tests, limits, tests, tests_channel),
    ]
    for descriptor in (program, program_channel, tests, tests_channel):
        os.close(descriptor)
    os.write(leash, b"started")
    waits = select.poll()
    waits.register(leash, select.POLLIN | select.POLLHUP)
    waits.poll(seconds * 1000)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _start(run: Callable[..., None], limits: tuple[float, int, int, int], source: int, channel: int) -> int:
    """Start a process that holds one in a fence; killed, it takes it along."""
    child = os.fork()
    if child:
        return child
    try:
        # The lowest free numbers, and nothing else.
        sockets = [
            socket.socket(fileno=os.dup2(os.dup2(one, 40 + i), 3 + i)) for i, one in enumerate((source, channel))
        ]
        os.closerange(5, 256)
        _, memory, output, kind = limits
        problem = ""
        try:
            if kind in (fence.AS_NOBODY, fence.IN_USER_NAMESPACE):
                fence.enter(kind, 16 * output)
        except (fence.FenceError, OSError) as error:
            problem = str(error)
        if os.fork() == 0:
            try:
                if not problem:
                    fence.confine(kind, int(limits[0]) + 1, memory, output)
            except (fence.FenceError, OSError) as error:
                problem = str(error)
            run(problem, *sockets)
        for one in sockets:
            one.close()
        os.wait()
    finally:
        os._exit(0)


def _run_program(problem: str, source: socket.socket, channel: socket.socket) -> None:
    text = read_all(source).decode("utf-8", "surrogatepass")
    source.close()
    send(channel, {"problem": problem})
    if not problem:
        program.serve(text, channel)


def _run_tests(problem: str, source: socket.socket, channel: socket.socket) -> None:
    given = json.loads(read_all(source))
    try:
        problem = problem or receive(channel)["problem"]
        if problem:
            source.sendall(BROKEN + problem.encode())
            return
        # From here on it is the program that speaks.
        ready = receive(channel) == {"ready": True}
        passed = ready and verdict.passes(given["tests"], given["names"], channel)
    except Gone:
        passed = False
    source.sendall(PASSED if passed else FAILED)
