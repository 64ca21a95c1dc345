"""Fixtures of the tests that compile with libtpu."""

import functools
import os

import pytest

from plamo2_jax.plan.compiler import ENVIRONMENT, topology_devices


@pytest.fixture(scope="session")
def devices():
    """Return a function from the name of a slice to its devices."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the tpu extra")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return functools.cache(topology_devices)
