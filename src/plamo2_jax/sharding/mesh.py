"""Meshes: the devices as an array with the axes data × fsdp × sequence × tensor, any of which may be 1.

data      copies of the parameters; rows of a batch are divided. The only axis that leaves a slice: its one message a step, the
          sum of gradients, is what the network between slices can carry.
fsdp      rows are divided, and so are the parameters, which are gathered a layer at a time.
sequence  tokens of a row are divided, and the parameters like over fsdp.
tensor    heads, MLP columns and vocabulary are divided, activations between layers are not: messages in every layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from plamo2_jax.model.axes import DATA, FSDP, SEQUENCE, TENSOR

AXES = (DATA, FSDP, SEQUENCE, TENSOR)
"""Slowest first: neighbouring devices differ in `tensor`, whose messages are the most frequent."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each axis; one axis may be -1: all devices that the others leave.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    data: int = 1
    """Copies of the parameters, each with its rows of the batch; a multiple of `slices`."""
    fsdp: int = -1
    """Parts that parameters and optimizer state are divided into, each with its rows of the batch."""
    sequence: int = 1
    """Parts that each row's tokens are divided into."""
    tensor: int = 1
    """Parts that heads, MLP columns and vocabulary are divided into."""
    slices: int = 1
    """Groups of devices with a fast network inside and a slow one between them (TPU slices); `data` spans them."""

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            self._require(name, size == -1 or size >= 1, "at least 1, or -1 for all devices that the other axes leave")
        self._require("slices", self.slices >= 1, "at least 1")
        open_axes = [name for name in AXES if getattr(self, name) == -1]
        if len(open_axes) > 1:
            raise ValueError(
                f"MeshConfig.{open_axes[0]}=-1 and {open_axes[1]}=-1 are not allowed: only one axis may be -1"
            )
        allowed = f"a multiple of slices={self.slices}, which it spans"
        self._require("data", self.data == -1 or self.data % self.slices == 0, allowed)

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"MeshConfig.{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")

    @property
    def open_axis(self) -> str | None:
        """The axis that is -1."""
        return next((name for name in AXES if getattr(self, name) == -1), None)

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """Sizes of the axes, in the order of AXES, on so many devices.

        Raises:
            ValueError: the axes' product is not the number of devices.
        """
        given = {name: getattr(self, name) for name in AXES}
        product = math.prod(size for size in given.values() if size != -1)
        spelled = " × ".join(f"{name}={size}" for name, size in given.items() if size != -1)
        if self.open_axis is not None:
            if devices % product:
                raise ValueError(
                    f"MeshConfig.{self.open_axis}=-1 has no size: {spelled} = {product} must divide the {devices} devices"
                )
            given[self.open_axis] = devices // product
        elif product != devices:
            raise ValueError(
                f"MeshConfig: {spelled} = {product} must be the number of devices, {devices}; give one axis -1 for what is left"
            )
        if given[DATA] % self.slices:
            raise ValueError(
                f"MeshConfig.data=-1 comes to {given[DATA]} of {devices} devices; it must be a multiple of slices={self.slices}"
            )
        return tuple(given[name] for name in AXES)

    def usable_devices(self, devices: int, rows: int) -> int:
        """How many of so many devices a batch of so many rows can be divided among: fewer than all only where data or fsdp is -1.

        Raises:
            ValueError: no number of devices will do.
        """
        explicit = math.prod(size for size in (self.data, self.fsdp) if size != -1)
        if rows % explicit:
            raise ValueError(
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
    """The mesh of a configuration, neighbours in it neighbours in the network.

    Args:
        config: sizes of the axes.
        devices: all devices of all processes when None.

    Raises:
        ValueError: the sizes do not fit the number of devices, or the devices do not form that many slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = config.shape(len(devices))
    if config.slices > 1:
        return jax.sharding.Mesh(_over_slices(config, shape, devices), AXES)
    return jax.sharding.Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)


def _over_slices(config: MeshConfig, shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices [data, fsdp, sequence, tensor], those of a slice together along data."""
    within = (shape[0] // config.slices, *shape[1:])
    numbers = [getattr(device, "slice_index", None) for device in devices]
    if None in numbers:
        # CPU, GPU and some compile-only devices know no slices. Processes may stand for them; else the order of devices.
        numbers = [device.process_index for device in devices]
        if len(set(numbers)) == 1:
            return np.array(devices).reshape(shape)
    if len(set(numbers)) != config.slices:
        raise ValueError(
            f"MeshConfig.slices={config.slices} is not allowed: the {len(devices)} devices form {len(set(numbers))} slice(s)"
        )
    if getattr(devices[0], "slice_index", None) is None:
        groups = sorted(zip(numbers, range(len(devices)), strict=True))
        return np.array([devices[index] for _, index in groups]).reshape(shape)
    outer = (config.slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(within, outer, devices, allow_split_physical_axes=True)
