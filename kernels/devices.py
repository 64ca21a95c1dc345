"""The devices that a traced function will run on."""

from __future__ import annotations

import jax
from jax.sharding import AxisType


def on_one_device() -> bool:
    """Return whether the traced function runs on one device. XLA cannot partition a Pallas kernel over several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (not mesh.empty and set(mesh.axis_types) == {AxisType.Manual})
