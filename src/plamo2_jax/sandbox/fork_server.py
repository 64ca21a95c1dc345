"""Fork server: starts an isolated process in a few milliseconds. A new interpreter would take tens of milliseconds.

The server runs without packages and with an empty environment, and imports the modules that programs often use. Isolated processes are
its copies, so it must not hold secrets: it never sees a program or tests, which travel over sockets that only their own process reads.

For each check, a supervisor process starts two processes in namespaces of their own: one runs the program, one the tests. The supervisor
kills both when the time is over or the caller closes its control socket; everything in their process namespaces ends with them.
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

from plamo2_jax.sandbox import isolation, program, verdict
from plamo2_jax.sandbox.channel import Gone, read_all, receive, send

_COMMON = "bisect collections copy dataclasses datetime decimal fractions functools heapq itertools math random re statistics string typing"
"""Modules that programs often use, imported once by the server."""
REQUEST = struct.Struct("=dqqB")
"""A request: seconds, bytes of memory, bytes of output, kind of isolation. Five sockets come with it, in the order of `_supervise`."""
PASSED, FAILED, BROKEN = b"+", b"-", b"!"
"""First byte of a verdict. After BROKEN comes the reason why isolation failed."""


def main() -> None:
    """Start a check for every request on file descriptor 0 until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The caller handles Ctrl-C.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests = socket.socket(fileno=os.dup(0))
    for name in _COMMON.split():
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
                _supervise(REQUEST.unpack(request), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(limits: tuple[float, int, int, int], control: int, *sockets: int) -> None:
    """Run one check. `sockets` are the source and the channel of the program, and then those of the tests."""
    children = [_start(_run_program, limits, *sockets[:2]), _start(_run_tests, limits, *sockets[2:])]
    for descriptor in sockets:
        os.close(descriptor)
    os.write(control, b"started")
    waits = select.poll()
    waits.register(control, select.POLLIN | select.POLLHUP)
    waits.poll(limits[0] * 1000)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _start(run: Callable[..., None], limits: tuple[float, int, int, int], source: int, channel: int) -> int:
    """Start a process that enters namespaces and starts the isolated process; killing the first kills both."""
    child = os.fork()
    if child:
        return child
    try:
        # Keep these two sockets, as descriptors 3 and 4, and nothing else.
        copies = [os.dup2(one, 40 + i) for i, one in enumerate((source, channel))]
        sockets = [socket.socket(fileno=os.dup2(one, 3 + i)) for i, one in enumerate(copies)]
        os.closerange(5, 256)
        _, memory, output, kind = limits
        problem = ""
        try:
            if kind in (isolation.AS_NOBODY, isolation.IN_USER_NAMESPACE):
                isolation.enter(kind, 16 * output)
        except (isolation.IsolationError, OSError) as error:
            problem = str(error)
        if os.fork() == 0:
            try:
                if not problem:
                    isolation.confine(kind, int(limits[0]) + 1, memory, output)
            except (isolation.IsolationError, OSError) as error:
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
        # From here on, messages may come from the program itself.
        ready = receive(channel) == {"ready": True}
        passed = ready and verdict.passes(given["tests"], given["names"], channel)
    except Gone:
        passed = False
    source.sendall(PASSED if passed else FAILED)
