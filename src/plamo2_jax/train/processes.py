"""A job of several processes: joining it, agreeing in it, and leaving it when one of the others is gone.

All processes run the same program on the same configuration. Each makes every batch whole and puts onto its devices the rows that they
hold, so that the batches, the position in the data and everything derived from the losses are the same in all of them, and the same as
in a job of one process. The first process alone writes logs and configuration; checkpoints are written by all, to one file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from plamo2_jax.checkpoint import first_line
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require

PEER_LOST = 75
"""Exit status of a process that ends because it lost another (EX_TEMPFAIL of sysexits.h): start all of them again."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """How this process joins a job of several.

    Raises:
        ValueError: a field is missing or out of range; the message names it, its value and what is allowed.
    """

    coordinator: str | None = None
    """HOST:PORT of the first process, the same for all; or `auto`: jax asks the TPU's metadata, Slurm or Open MPI for all three.
    None: a job of one process."""
    process_id: int | None = None
    """Index of this process, from 0."""
    process_count: int | None = None
    """Number of processes in the job."""
    heartbeat_seconds: int = 30
    """A process without a sign of life for this long counts as lost, and the others end."""

    def __post_init__(self) -> None:
        given = self.coordinator not in (None, "auto")
        for name in ("process_id", "process_count"):
            allowed = "given with coordinator HOST:PORT" if given else "left out without coordinator HOST:PORT"
            require(self, name, (getattr(self, name) is not None) == given, allowed, where="distributed")
        require(self, "heartbeat_seconds", self.heartbeat_seconds >= 2, "at least 2", where="distributed")
        if given:
            host, _, port = self.coordinator.rpartition(":")
            require(self, "coordinator", bool(host) and port.isdigit(), "HOST:PORT or auto", where="distributed")
            require(self, "process_count", self.process_count >= 1, "at least 1", where="distributed")
            require(
                self,
                "process_id",
                0 <= self.process_id < self.process_count,
                "from 0 to process_count - 1",
                where="distributed",
            )


def join(config: ProcessesConfig) -> None:
    """Join the job. Call it before anything asks jax for a device.

    Raises:
        ValueError: the job cannot be joined; the message says why.
    """
    if config.coordinator is None:
        return
    named = {}
    if config.coordinator != "auto":
        named = {
            "coordinator_address": config.coordinator,
            "num_processes": config.process_count,
            "process_id": config.process_id,
        }
    try:
        jax.distributed.initialize(
            **named,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            # At the end nobody waits longer for the others than they would wait for a sign of life.
            shutdown_timeout_seconds=config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise PlamoError(
            f"the job at distributed.coordinator={config.coordinator} cannot be joined: {first_line(error)}"
        ) from error


def from_first(value: Any) -> Any:
    """Return the value of the first process in all processes.

    Args:
        value: JSON types, tuples come back as lists; looked at in the first process alone.
    """
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if jax.process_index() == 0 else b""
    # The others must know the size of what they get.
    buffer = np.zeros(int(multihost_utils.broadcast_one_to_all(np.int32(len(text)))), np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(buffer).tobytes())


def largest(value: int) -> int:
    """Return the largest value of all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


@contextlib.contextmanager
def leave_when_broken(folder: os.PathLike[str]) -> Iterator[None]:
    """In a job of several processes, end this one at once when something fails between them: a collective, or a barrier of Orbax's.

    It fails because another process is gone. Unwinding would wait for that one at the next barrier, in Orbax or in jax's shutdown,
    so the process ends here, with status PEER_LOST and one line on stderr. Finished checkpoints are whole; a half-written one counts
    for nothing.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or (broken := _between_processes(error)) is None:
            raise
        _leave(
            f"a collective failed, so another process is gone or out of reach; this one ends too. {_again(folder)} "
            f"({first_line(broken)[:200]})"
        )


def leave_when_aborted(folder: os.PathLike[str]) -> None:
    """In a job of several processes, have jax's abort end this one as `leave_when_broken` does; where numba is missing, it stays an abort.

    jax's own thread aborts the process when the coordinator is gone, or says that another one is. That can come before a collective
    fails, or where none is waited for; Python is not asked. So SIGABRT is caught. The handler must not wait for Python's lock, which a
    thread that waits for the aborting one may hold (in jax's shutdown, say), so numba compiles it. The line comes after the stack that
    jax writes, and is the last.
    """
    if jax.process_count() == 1:
        return
    try:
        import numba
    except ImportError:
        return
    line = _line(f"jax aborted this one (above), most likely because another process is gone. {_again(folder)}")
    text = ctypes.create_string_buffer(line)
    address, size, status = ctypes.addressof(text), len(line), PEER_LOST
    libc = ctypes.CDLL(None)
    write, leave = libc.write, libc._exit
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t), ctypes.c_ssize_t
    leave.argtypes, leave.restype = (ctypes.c_int,), None

    @numba.cfunc("void(int32)")
    def on_abort(_):  # No annotations, which numba would not read.
        write(2, address, size)
        leave(status)

    _kept.extend((text, on_abort))
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, on_abort.address)


_kept: list[object] = []
"""What the handler uses outlives the call that set it up."""


def _between_processes(error: BaseException | None) -> BaseException | None:
    """Return the error of jax's runtime that caused this one; Orbax and our own classes wrap it. None if there is none."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error


def _again(folder: os.PathLike[str]) -> str:
    return f"Start all of them again: {os.fspath(folder)} goes on from its newest checkpoint."


def _line(why: str) -> bytes:
    return f"\nplamo2 pretrain: process {jax.process_index()} of {jax.process_count()}: {why}\n".encode()


def _leave(why: str) -> NoReturn:
    """Write a last line to stderr and end the process."""
    said = os.dup(2)
    # Other threads may be writing their stacks.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.write(said, _line(why))
    os._exit(PEER_LOST)
