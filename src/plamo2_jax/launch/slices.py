"""TPU slices by accelerator type: chips, hosts, shape, runtime version and GKE label.

Sources (read in November 2026):
    types, shapes, chips per host  cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} and /tpu/docs/supported-tpu-configurations
    runtime versions               cloud.google.com/tpu/docs/runtimes
    labels of GKE nodes            cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
    tpu7x only in GKE              cloud.google.com/tpu/docs/queued-resources
"""

from __future__ import annotations

import dataclasses
import math

from plamo2_jax.errors import PlamoError

_CUBES = ("4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBOIDS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", *_CUBES)


@dataclasses.dataclass(frozen=True)
class Generation:
    """Common properties of the slices of one TPU generation."""

    prefix: str
    """Prefix of the accelerator type."""
    units: int
    """Units per chip in the number of the accelerator type: 2 if it counts TensorCores, 1 if it counts chips."""
    runtime: str | None
    """Runtime version of a TPU VM; None if the generation is available only in GKE."""
    gke: str
    """Value of the node label cloud.google.com/gke-tpu-accelerator."""
    shapes: tuple[str, ...]
    """Available shapes."""
    devices_per_chip: int = 1
    """Number of JAX devices per chip."""


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", _CUBOIDS),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", _SQUARES),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", (*_CUBOIDS, "16x16x16", "16x16x24")),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", _SQUARES),
    "tpu7x": Generation("tpu7x", 2, None, "tpu7x", (*_CUBOIDS, "16x16x16"), devices_per_chip=2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU slice."""

    generation: Generation
    shape: str

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.generation.devices_per_chip

    @property
    def topology(self) -> str:
        """Name of the slice in `plamo2 plan`, such as v5p:4x4x4."""
        return f"{next(name for name, each in GENERATIONS.items() if each is self.generation)}:{self.shape}"

    @property
    def accelerator(self) -> str:
        """The accelerator type, such as v5p-128."""
        return f"{self.generation.prefix}-{self.chips * self.generation.units}"

    @property
    def chips_per_host(self) -> int:
        """At most four. (v5e and v6e also have machines with 8 chips: as TPU VMs, and in GKE in node pools created with them.)"""
        return min(self.chips, 4)

    @property
    def fits_one_machine(self) -> bool:
        """Whether the slice is one TPU VM: four chips, or eight for v5e and v6e."""
        return self.hosts == 1 or self.shape == "2x4"

    @property
    def hosts(self) -> int:
        """Number of machines."""
        return self.chips // self.chips_per_host


def parse_slice(text: str, option: str = "--accelerator") -> Slice:
    """Parse an accelerator type (v5litepod-16, v5p-128, v6e-256), or generation and shape (v5p:4x4x4).

    Args:
        option: Option that the messages name.

    Raises:
        PlamoError: There is no such slice. The message lists the slices of the generation.
    """
    name, separator, size = text.replace(":", "-", 1).partition("-")
    generation = GENERATIONS.get("v5e" if name == "v5litepod" else name)
    if generation is None or not separator:
        known = ", ".join(parse_slice(f"{name}:{each.shapes[3]}").accelerator for name, each in GENERATIONS.items())
        raise PlamoError(f"{option} {text} is not known: it must be an accelerator type such as {known}")
    slices = [Slice(generation, shape) for shape in generation.shapes]
    for found in slices:
        if size in (found.shape, found.accelerator.partition("-")[2]):
            return found
    allowed = ", ".join(each.accelerator for each in slices)
    raise PlamoError(f"{option} {text} is not available: this generation has {allowed}")
