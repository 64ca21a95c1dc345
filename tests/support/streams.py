"""Comparing streams of batches."""

from __future__ import annotations

import itertools

import numpy as np


def take(iterator, count):
    """The next batches of an iterator."""
    return list(itertools.islice(iterator, count))


def assert_same(left, right):
    """The same batches, to the last bit."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def joined(parts):
    """The batches of a job, from the rows of its processes."""
    return [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
