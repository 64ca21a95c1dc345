"""Run a function on many jobs in worker processes, with results in the order of the jobs and a bounded number of jobs in memory."""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from plamo2_jax.errors import PlamoError

FEWEST_JOBS = 8
"""Fewer jobs are run in this process, because a worker process takes about a second to start."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield the results of a function in the order of the jobs.

    With one worker, or for a few jobs, the function is called in this process. In worker processes, at most four jobs and results a worker
    are in memory.

    Args:
        function: function to call. It is pickled once for each worker.
        jobs: arguments, which are pickled. They are read as workers become free. An error while reading is raised after the results of
            the jobs before it.
        workers: number of processes.

    Raises:
        PlamoError: a worker process was killed.
        Exception: an error of the function.
    """
    stream = iter(jobs)
    if workers > 1:
        start, failure = _take(stream, FEWEST_JOBS)
        stream = itertools.chain(start, _failing(failure) if failure else stream)
        if len(start) == FEWEST_JOBS:
            yield from _in_processes(function, stream, workers)
            return
    yield from map(function, stream)


def _in_processes(function: Callable[[Any], Any], jobs: Iterator[Any], workers: int) -> Iterator[Any]:
    # Not forked: this process may hold threads that a fork would leave in the middle of something.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (function,))
    pending: collections.deque[Future] = collections.deque()
    try:
        failure = None
        while failure is None:
            some, failure = _take(jobs, 1)
            if not some:
                break
            with _without_interrupts() if not pending else contextlib.nullcontext():
                pending.append(pool.submit(_run, some[0]))
            if len(pending) > 3 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    except BrokenProcessPool:
        raise PlamoError(
            "a worker process was killed, probably because the memory was full. No output was written. Run "
            "the command again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _take(jobs: Iterator[Any], number: int) -> tuple[list[Any], Exception | None]:
    """Return the next jobs, and the error that ended them if there is one."""
    taken: list[Any] = []
    try:
        for job in itertools.islice(jobs, number):
            taken.append(job)
    except Exception as error:
        return taken, error
    return taken, None


def _failing(error: Exception) -> Iterator[Any]:
    raise error
    yield


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT in this thread. Processes that are started here inherit this, and an interrupt is delivered at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_function: Callable[[Any], Any]


def _start(function: Callable[[Any], Any]) -> None:
    """Prepare a worker process."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The main process handles Ctrl-C.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the main process has ended, also if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Any) -> Any:
    return _function(job)
