"""What the kernels must know of the devices that a traced function will run on."""

from __future__ import annotations

import jax
from jax.sharding import AxisType


def on_one_device() -> bool:
    """Whether what is traced runs on one device as it stands: XLA refuses to partition a Pallas kernel over several."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (not mesh.empty and set(mesh.axis_types) == {AxisType.Manual})
