"""Device meshes with the axes data × fsdp × sequence × tensor. Any of them may have size 1.

data      Divides the rows of a batch; parameters are replicated. Only this axis may span TPU slices: it needs one message per step, the
          sum of gradients, which the slow network between slices can carry.
fsdp      Divides rows and parameters. The parameters are gathered one layer at a time.
sequence  Divides the tokens of each row, and the parameters like fsdp.
tensor    Divides heads, MLP columns and vocabulary, but not the activations between layers. Every layer needs messages.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from plamo2_jax.errors import PlamoError
from plamo2_jax.model.axes import DATA, FSDP, SEQUENCE, TENSOR
from plamo2_jax.validation import require

AXES = (DATA, FSDP, SEQUENCE, TENSOR)
"""Slowest axis first. Neighbouring devices differ in `tensor`, which has the most frequent messages."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis. One axis may be -1, for all remaining devices.

    Raises:
        PlamoError: A field is out of range.
    """

    data: int = 1
    """Number of copies of the parameters, each with its own rows of the batch; a multiple of `slices`."""
    fsdp: int = -1
    """Number of parts of parameters and optimizer state, each with its own rows of the batch."""
    sequence: int = 1
    """Number of parts of each row's tokens."""
    tensor: int = 1
    """Number of parts of heads, MLP columns and vocabulary."""
    slices: int = 1
    """Number of TPU slices: groups of devices with a fast network inside and a slow one between them. The axis data spans them."""

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            require(self, name, size == -1 or size >= 1, "at least 1, or -1 for all remaining devices")
        require(self, "slices", self.slices >= 1, "at least 1")
        open_axes = [name for name in AXES if getattr(self, name) == -1]
        if len(open_axes) > 1:
            given = " and ".join(f"{name}=-1" for name in open_axes)
            raise PlamoError(f"MeshConfig.{given} are not allowed: only one axis may be -1")
        allowed = f"a multiple of slices={self.slices}"
        require(self, "data", self.data == -1 or self.data % self.slices == 0, allowed)

    @property
    def open_axis(self) -> str | None:
        """The axis that is -1."""
        return next((name for name in AXES if getattr(self, name) == -1), None)

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """Return the sizes of the axes, in the order of AXES, for a number of devices.

        Raises:
            PlamoError: The product of the sizes is not the number of devices.
        """
        given = {name: getattr(self, name) for name in AXES}
        product = math.prod(size for size in given.values() if size != -1)
        spelled = " × ".join(f"{name}={size}" for name, size in given.items() if size != -1)
        if self.open_axis is not None:
            if devices % product:
                raise PlamoError(
                    f"MeshConfig.{self.open_axis}=-1 is not allowed: {spelled} = {product} must divide the {devices} devices"
                )
            given[self.open_axis] = devices // product
        elif product != devices:
            raise PlamoError(
                f"MeshConfig: {spelled} = {product} must be the number of devices, {devices}. Set one axis to -1 for all remaining devices"
            )
        if given[DATA] % self.slices:
            raise PlamoError(
                f"MeshConfig.data=-1 gives {given[DATA]} for {devices} devices: it must be a multiple of slices={self.slices}"
            )
        return tuple(given[name] for name in AXES)

    def usable_devices(self, devices: int, rows: int) -> int:
        """Return the largest number of devices among which a batch of `rows` rows can be divided.

        It is smaller than `devices` only if data or fsdp is -1.

        Raises:
            PlamoError: The rows cannot be divided among any number of devices.
        """
        explicit = math.prod(size for size in (self.data, self.fsdp) if size != -1)
        if rows % explicit:
            raise PlamoError(
                f"MeshConfig.data={self.data} and fsdp={self.fsdp} are not allowed with {rows} rows in a micro-batch "
                f"(data.batch_size / accumulation): their product must divide the rows"
            )
        if self.open_axis not in (DATA, FSDP):
            return devices
        inner = math.prod(getattr(self, name) for name in AXES if name != self.open_axis)
        if inner > devices:
            self.shape(devices)
        return inner * math.gcd(rows // explicit, devices // inner)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Build the mesh of a configuration. Neighbours in the mesh are neighbours in the network.

    Args:
        devices: Devices to use; None: all devices of all processes.

    Raises:
        PlamoError: The sizes do not fit the number of devices, or the devices do not form that many slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = config.shape(len(devices))
    if config.slices > 1:
        array = _over_slices(config, shape, devices)
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(array, AXES)


def _over_slices(config: MeshConfig, shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Return the devices as an array [data, fsdp, sequence, tensor], with the devices of a slice together along data."""
    within = (shape[0] // config.slices, *shape[1:])
    numbers = [getattr(device, "slice_index", None) for device in devices]
    if None in numbers:
        # CPU, GPU and some compile-only devices have no slice number. Use their process number instead, or else their order.
        numbers = [device.process_index for device in devices]
        if len(set(numbers)) == 1:
            return np.array(devices).reshape(shape)
    if len(set(numbers)) != config.slices:
        raise PlamoError(
            f"MeshConfig.slices={config.slices} is not allowed: the {len(devices)} devices form {len(set(numbers))} slice(s)"
        )
    if getattr(devices[0], "slice_index", None) is None:
        groups = sorted(zip(numbers, range(len(devices)), strict=True))
        return np.array([devices[index] for _, index in groups]).reshape(shape)
    outer = (config.slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(within, outer, devices, allow_split_physical_axes=True)
