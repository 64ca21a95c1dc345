"""The devices that a traced function will run on."""

from __future__ import annotations

import jax
from jax.sharding import AxisType


def on_one_device() -> bool:
    """Return whether the traced function runs on one device. XLA cannot partition a Pallas kernel over several devices.

    A mesh of a single device, or the inside of a `jax.shard_map`, shows this. Without a mesh, it is true if there is only one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    return mesh.size == 1 or set(mesh.axis_types) == {AxisType.Manual}
