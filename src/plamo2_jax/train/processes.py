"""A job of several processes: joining it, agreeing in it, and leaving it when one of the others is gone.

All processes run the same program on the same configuration. Each makes every batch whole and puts onto its devices the rows that they
hold, so that the batches, the position in the data and everything derived from the losses are the same in all of them, and the same as
in a job of one process. The first process alone writes logs and configuration; checkpoints are written by all, to one file system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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
    """This process, from 0."""
    process_count: int | None = None
    """Processes in the job."""
    heartbeat_seconds: int = 30
    """A process not heard of for so long is gone, and the others end."""

    def __post_init__(self) -> None:
        given = self.coordinator not in (None, "auto")
        for name in ("process_id", "process_count"):
            allowed = "given with coordinator HOST:PORT" if given else "left out without coordinator HOST:PORT"
            self._require(name, (getattr(self, name) is not None) == given, allowed)
        self._require("heartbeat_seconds", self.heartbeat_seconds >= 2, "at least 2")
        if given:
            host, _, port = self.coordinator.rpartition(":")
            self._require("coordinator", bool(host) and port.isdigit(), "HOST:PORT or auto")
            self._require("process_count", self.process_count >= 1, "at least 1")
            self._require("process_id", 0 <= self.process_id < self.process_count, "from 0 to process_count - 1")

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"distributed.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")


def join(config: ProcessesConfig) -> None:
    """Join the job; to be called before anything asks jax for a device.

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
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(
            f"the job at distributed.coordinator={config.coordinator} cannot be joined: {reason}"
        ) from error


def barrier(name: str) -> None:
    """Wait until every process is here; nothing in a job of one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first(value: Any) -> Any:
    """The first process's value, in all of them.

    Args:
        value: JSON types, tuples come back as lists; looked at in the first process alone.
    """
    if jax.process_count() == 1:
        return value
    buffer = np.zeros(4096, np.uint8)
    text = json.dumps(value).encode()[: buffer.size] if jax.process_index() == 0 else b""
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(buffer).tobytes().rstrip(b"\0"))


def largest(value: int) -> int:
    """The largest of all processes' values."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


@contextlib.contextmanager
def leave_when_broken(folder: os.PathLike[str]) -> Iterator[None]:
    """In a job of several processes, end this one at once when a collective fails.

    It fails because another process is gone. Unwinding would wait for that one at the next barrier, in Orbax or in jax's shutdown,
    so the process ends here, with status PEER_LOST and one line on stderr. Finished checkpoints are whole; a half-written one counts
    for nothing.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0][:200]
        print(
            f"process {jax.process_index()} of {jax.process_count()}: a collective failed, so another process is gone or out of reach; "
            f"this one ends too. Start all of them again: {os.fspath(folder)} goes on from its newest checkpoint. ({reason})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(PEER_LOST)
