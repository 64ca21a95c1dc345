"""Batches placed in advance: the same batches, exact positions, a bounded number, errors in the right place."""

import threading
import time

import jax
import numpy as np
import pytest

from plamo2_jax.train.device_prefetch import DevicePrefetch


class Numbers:
    """An iterator of numbered batches with a position; the batch `broken` cannot be read."""

    def __init__(self, broken=None):
        self.position, self.broken, self.closed = 0, broken, False

    def __next__(self):
        if self.position == self.broken:
            raise OSError("the disk is gone")
        self.position += 1
        return {"tokens": np.full((2, 3), self.position)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def close(self):
        self.closed = True


def numbers(prefetch, count):
    return [int(next(prefetch)["tokens"][0, 0]) for _ in range(count)]


@pytest.mark.parametrize("size", [0, 1, 3])
def test_the_position_is_that_of_the_batches_returned(size):
    numbered = Numbers()
    with DevicePrefetch(numbered, jax.device_put, size) as prefetch:
        assert prefetch.get_state() == {"position": 0}
        for expected in range(1, 6):
            assert numbers(prefetch, 1) == [expected]
            assert prefetch.get_state() == {"position": expected}
        prefetch.set_state({"position": 2})
        assert prefetch.get_state() == {"position": 2}
        assert numbers(prefetch, 3) == [3, 4, 5]
    assert numbered.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "device prefetch"]


def test_no_more_than_the_given_number_are_placed_in_advance():
    placed = []

    def place(batch):
        placed.append(int(batch["tokens"][0, 0]))
        return jax.device_put(batch)

    with DevicePrefetch(Numbers(), place, 2) as prefetch:
        for taken in range(1, 4):
            numbers(prefetch, 1)
            deadline = time.monotonic() + 120
            while len(placed) < taken + 2 and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(0.02)
            assert placed == list(range(1, taken + 3))


def test_an_error_comes_at_the_batch_where_it_occurred():
    with DevicePrefetch(Numbers(broken=3), jax.device_put, 2) as prefetch:
        assert numbers(prefetch, 3) == [1, 2, 3]
        with pytest.raises(OSError, match="the disk is gone"):
            next(prefetch)
        assert prefetch.get_state() == {"position": 3}
