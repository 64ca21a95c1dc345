"""Batches on the devices before the step needs them: a thread reads, transforms and places the next batches while the step runs."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable
from typing import Any

import grain
import jax

from plamo2_jax.data.batch import Batch

Place = Callable[[Batch], dict[str, jax.Array]]


class DevicePrefetch:
    """Iterator of placed batches, equal to `place(next(iterator))`.

    Its state is the position after the last batch that it returned: batches that were only placed in advance do not count as read.

    Args:
        iterator: Iterator of this process's rows.
        place: Transforms a batch and puts it onto the devices. A thread calls it.
        size: Largest number of batches in advance; 0: place each batch when it is needed, without a thread.
    """

    def __init__(self, iterator: grain.DatasetIterator, place: Place, size: int):
        self._iterator, self._place, self._size = iterator, place, size
        self._state: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> DevicePrefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._iterator.close()

    def __iter__(self) -> DevicePrefetch:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        """Return the next batch.

        Raises:
            Exception: The error of the iterator or of `place`, raised here at the batch where it occurred.
        """
        if self._size == 0:
            return self._place(next(self._iterator))
        if self._thread is None:
            self._start()
        batch, state, error = self._ready.get()
        if error is not None:
            self._stop()
            raise error
        self._state = state
        self._room.release()
        return batch

    def get_state(self) -> Any:
        """Return the data position after the last batch that was returned."""
        return self._iterator.get_state() if self._state is None else self._state

    def set_state(self, state: Any) -> None:
        """Drop the batches placed in advance, and continue at a data position."""
        self._stop()
        self._iterator.set_state(state)
        self._state = None

    def _start(self) -> None:
        # Read before the thread moves the iterator.
        self._state = copy.deepcopy(self.get_state())
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(self._size)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="device prefetch", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            while True:
                self._room.acquire()
                if self._stopping.is_set():
                    return
                batch = self._place(next(self._iterator))
                self._ready.put((batch, copy.deepcopy(self._iterator.get_state()), None))
        except BaseException as error:  # It belongs to the thread that asks for the batch.
            self._ready.put((None, None, error))

    def _stop(self) -> None:
        if self._thread is not None:
            self._stopping.set()
            self._room.release()
            self._thread.join()
            self._thread = None
