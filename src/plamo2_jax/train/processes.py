"""Jobs of several processes: joining, exchanging values, and ending when another process is lost.

All processes run the same program with the same configuration. Each process makes every batch, and puts the rows of its own devices onto
them. So the batches, the data position and everything that follows from the losses are the same in all processes, and the same as in a job
of one process. Only the first process writes logs and configuration. All processes write checkpoints, to one file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
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
"""Exit status of a process that ends because another process is lost (EX_TEMPFAIL of sysexits.h): restart all processes."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """Settings for a job of several processes.

    Raises:
        PlamoError: A field is missing or out of range.
    """

    coordinator: str | None = None
    """HOST:PORT of the first process, or `auto`: JAX detects it, process_id and process_count on TPU pods and under SLURM or Open MPI.
    None: a job with one process."""
    process_id: int | None = None
    """Index of this process, from 0."""
    process_count: int | None = None
    """Number of processes in the job."""
    heartbeat_seconds: int = 30
    """Time without a heartbeat after which a process counts as lost and the others end, in seconds."""

    def __post_init__(self) -> None:
        check = functools.partial(require, self, where="distributed")
        given = self.coordinator not in (None, "auto")
        for name in ("process_id", "process_count"):
            allowed = "given with coordinator HOST:PORT" if given else "None, because coordinator is not HOST:PORT"
            check(name, (getattr(self, name) is not None) == given, allowed)
        check("heartbeat_seconds", self.heartbeat_seconds >= 2, "at least 2")
        if given:
            host, _, port = self.coordinator.rpartition(":")
            check("coordinator", bool(host) and port.isdigit(), "HOST:PORT or auto")
            check("process_count", self.process_count >= 1, "at least 1")
            check("process_id", 0 <= self.process_id < self.process_count, "from 0 to process_count - 1")


def join(config: ProcessesConfig) -> None:
    """Join the job. Call this before jax initializes its devices.

    Raises:
        PlamoError: The job cannot be joined.
    """
    if config.coordinator is None:
        return
    try:
        jax.distributed.initialize(
            coordinator_address=None if config.coordinator == "auto" else config.coordinator,
            num_processes=config.process_count,
            process_id=config.process_id,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            # At the end, a process waits for the others no longer than for a heartbeat.
            shutdown_timeout_seconds=config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise PlamoError(
            f"the job at distributed.coordinator={config.coordinator} cannot be joined: {first_line(error)}. "
            "Check that all processes can reach this address and have the same process_count"
        ) from error


def from_first(value: Any) -> Any:
    """Return the value of the first process in all processes. It consists of JSON types; tuples become lists.

    The argument of the other processes is ignored.
    """
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if jax.process_index() == 0 else b""
    # The other processes need a buffer of the right size.
    buffer = np.zeros(int(multihost_utils.broadcast_one_to_all(np.int32(len(text)))), np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(buffer).tobytes())


def gather(values: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, stacked along a new first axis. They have the same shape and a dtype of at most 32 bits."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def largest(value: int) -> int:
    """Return the maximum of the values of all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


@contextlib.contextmanager
def leave_when_broken(folder: os.PathLike[str]) -> Iterator[None]:
    """In a job of several processes, end this process at once when a collective or an Orbax barrier fails.

    Such a failure means that another process is gone. Python's normal exit would wait for that process at the next barrier of Orbax or jax,
    so the process ends here, with the exit status PEER_LOST and one line on stderr. Finished checkpoints are intact, and an unfinished one
    is ignored.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or (broken := _between_processes(error)) is None:
            raise
        _leave(
            "a collective failed: another process has ended or is unreachable, so this process ends too. "
            f"{_again(folder)} ({first_line(broken)[:200]})"
        )


def leave_when_aborted(folder: os.PathLike[str]) -> None:
    """In a job of several processes, end this process like `leave_when_broken` when jax aborts it. Without numba, do nothing.

    A thread of jax aborts the process when the coordinator is gone or reports another lost process. This can happen before a collective
    fails, and Python is not informed, so the signal SIGABRT is handled. The handler must not wait for the GIL, because a thread that waits
    for the aborting thread may hold it, for example in jax's shutdown. So numba compiles the handler. Its line on stderr is the last, after
    the stack that jax writes.
    """
    if jax.process_count() == 1:
        return
    try:
        import numba
    except ImportError:
        return
    line = _line(
        f"JAX aborted this process (see above), most likely because another process has ended. {_again(folder)}"
    )
    text = ctypes.create_string_buffer(line)
    address, size, status = ctypes.addressof(text), len(line), PEER_LOST
    libc = ctypes.CDLL(None)
    write, leave = libc.write, libc._exit
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t), ctypes.c_ssize_t
    leave.argtypes, leave.restype = (ctypes.c_int,), None

    @numba.cfunc("void(int32)")
    def on_abort(_):  # Without annotations, which numba does not support.
        write(2, address, size)
        leave(status)

    _kept.extend((text, on_abort))
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, on_abort.address)


_kept: list[object] = []
"""Objects of the abort handler, which must not be garbage-collected."""


def _between_processes(error: BaseException | None) -> BaseException | None:
    """Return the error of the jax runtime that caused an error, or None. Orbax and this package may wrap it."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error


def _again(folder: os.PathLike[str]) -> str:
    return f"Restart all processes: {os.fspath(folder)} resumes from its newest checkpoint."


def _line(why: str) -> bytes:
    return f"\nplamo2 pretrain: process {jax.process_index()} of {jax.process_count()}: {why}\n".encode()


def _leave(why: str) -> NoReturn:
    """Write a last line to stderr and end the process."""
    stderr = os.dup(2)
    # Other threads may be writing their stacks.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.write(stderr, _line(why))
    os._exit(PEER_LOST)
