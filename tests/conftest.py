"""Settings every test shares. Set before jax is imported anywhere."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far more than they compute: no LLVM optimisation.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import hypothesis
import numpy as np
import pytest

# Seeded and without a deadline: the first example of a shape pays for its compilation.
hypothesis.settings.register_profile("plamo2", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("plamo2")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator seeded alike for every test."""
    return np.random.default_rng(0)
