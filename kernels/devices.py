"""What the kernels must know of the devices that a traced function will run on."""

from __future__ import annotations

import jax
from jax.sharding import AxisType


def on_one_device() -> bool:
    """Whether what is traced runs on one device as it stands: XLA refuses to partition a Pallas kernel over several.

    A mesh says so: one of a single device, or the inside of a `jax.shard_map`. Without a mesh, whoever has more than one device may
    mean any number of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    return mesh.size == 1 or set(mesh.axis_types) == {AxisType.Manual}
