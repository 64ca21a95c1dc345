"""Parameters, what one device makes of a batch, and a mesh with three axes."""

import jax
import pytest

from plamo2_jax.model.plamo2 import init_params
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from support.meshes import loss_and_gradients, make_batch, make_model


@pytest.fixture(scope="session")
def params():
    """Parameters on the host."""
    return jax.device_get(jax.jit(lambda: init_params(make_model(), jax.random.key(0)))())


@pytest.fixture(scope="session")
def one_device(params):
    """Loss and gradients of the batch on one device."""
    return jax.jit(loss_and_gradients(make_model()))(params, make_batch())


@pytest.fixture(scope="session")
def cube():
    """data=2 × fsdp=2 × tensor=2."""
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
