"""Run several processes on this machine, to try out multi-process training. Each has its own CPU devices, or they share the GPUs."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch.job import Job, process_flags, wrapped
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True)
class Local:
    """Train with several processes on this machine; each line of output starts with the index of its process."""

    processes: int = 2
    """Number of processes."""
    devices: int | None = None
    """Number of CPU devices of each process. Default: all devices that JAX finds, shared by the processes."""
    port: int = 0
    """Port of the coordinator on 127.0.0.1; 0 takes a free port."""
    grace: int = 60
    """Time between SIGTERM and SIGKILL for the other processes after one has failed, in seconds."""


@dataclasses.dataclass(frozen=True)
class Process:
    """One process to start."""

    arguments: list[str]
    environment: dict[str, str]
    """Variables in addition to the environment of this process."""


def plan(
    job: Job, options: Local, program: tuple[str, ...] = (sys.executable, "-m", "plamo2_jax.cli.main")
) -> list[Process]:
    """Return the processes of a job.

    Raises:
        PlamoError: An option is out of range.
    """
    require_at_least(1, processes=options.processes, devices=options.devices)
    require_at_least(0, port=options.port, grace=options.grace)
    if options.port > 65535:
        raise PlamoError(f"--port {options.port} is not allowed: it must be at most 65535")
    environment = {}
    if options.devices is not None:
        count = f"--xla_force_host_platform_device_count={options.devices}"
        # Of a repeated flag, XLA takes the last value.
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()}
    if options.processes == 1:
        return [Process(job.command(program), environment)]
    coordinator = f"127.0.0.1:{options.port or free_port()}"
    flags = [process_flags(coordinator, number, options.processes) for number in range(options.processes)]
    return [Process(job.command(program, *each), environment) for each in flags]


def script(job: Job, options: Local) -> str:
    """Return the processes as a bash script, for --dry-run. (`launch` starts the processes itself.)"""
    lines = ["#!/usr/bin/env bash", "trap 'kill $(jobs -p); wait' INT TERM", "pids=()"]
    for process in plan(job, options):
        settings = [f"{key}={shlex.quote(value)}" for key, value in process.environment.items()]
        lines += [" ".join([*settings, wrapped(process.arguments), "&"]), 'pids+=("$!")']
    return "\n".join([*lines, _WAIT])


# Ends with the status of the first process that failed. `wait` alone always succeeds, and `wait -n` misses processes that have ended.
_WAIT = """\
while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2> /dev/null && continue
    wait "${pids[i]}"
    status=$?
    unset "pids[i]"
    if ((status)); then
      kill "${pids[@]}" 2> /dev/null
      wait
      exit "$status"
    fi
  done
  sleep 1
done
"""


def launch(job: Job, options: Local) -> int:
    """Run the processes to their end, and return the exit status."""
    return run(plan(job, options), options.grace)


def run(processes: Sequence[Process], grace: float) -> int:
    """Run processes at the same time, and print each line of their output after the process number.

    SIGINT and SIGTERM are passed to all processes. If one fails, the others get SIGTERM, and after `grace` seconds SIGKILL.

    Returns:
        Exit status of the first process that failed (128 + N if signal N ended it), or 0.
    """
    caught: list[int] = []
    passed = 0
    running: dict[int, subprocess.Popen[bytes]] = {}

    def to_all(number: int) -> None:
        for process in running.values():
            process.send_signal(number)  # Does nothing for a process that has ended.

    # The handler only records the signal, and the loop below passes it on. Otherwise a process that is being started would miss it.
    before = {
        number: signal.signal(number, lambda caught_number, frame: caught.append(caught_number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    readers = []
    status, deadline = 0, None
    try:
        for number, process in enumerate(processes):
            # Each process gets its own session. Otherwise Ctrl-C in a terminal would reach every process twice.
            running[number] = subprocess.Popen(
                process.arguments,
                env=os.environ | process.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            for source, target in ((running[number].stdout, sys.stdout), (running[number].stderr, sys.stderr)):
                readers.append(threading.Thread(target=_prefix, args=(source, target, number), daemon=True))
                readers[-1].start()
        while running:
            while passed < len(caught):
                to_all(caught[passed])
                passed += 1
            for number, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[number]
                if code != 0 and status == 0:
                    status = code if code > 0 else 128 - code
                    print(f"launch: process {number} ended with status {status}", file=sys.stderr, flush=True)
                    # After a signal, all processes are already ending. A second signal would interrupt their checkpoints.
                    if not passed:
                        to_all(signal.SIGTERM)
                        deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                to_all(signal.SIGKILL)
            time.sleep(0.05)
    finally:
        to_all(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)
    for reader in readers:
        reader.join(timeout=5)  # A child of an ended process may still hold its output open.
    return status


def _prefix(source: IO[bytes], target: IO[str], number: int) -> None:
    """Copy complete lines, each after the process number."""
    with source:
        for line in source:
            target.write(f"[{number}] {line.decode(errors='replace').rstrip()}\n")
            target.flush()


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
