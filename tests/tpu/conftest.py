"""What the tests through the TPU compiler share."""

import functools
import os

import pytest

from plamo2_jax.plan.compiler import ENVIRONMENT, topology_devices


@pytest.fixture(scope="session")
def devices():
    """The devices of a slice that is not there, by its name."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the tpu extra")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return functools.cache(topology_devices)
