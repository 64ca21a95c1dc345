"""Published figures of TPU chips, per `jax.Device`. A device is a chip; on TPU7x it is one of the two TensorCores of a chip."""

from __future__ import annotations

import dataclasses

from plamo2_jax.errors import PlamoError
from plamo2_jax.train.flops import PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Chip:
    """One `jax.Device` of a TPU slice."""

    kind: str
    """`jax.Device.device_kind`."""
    cores: int
    """TensorCores that share the device's work."""
    mxus: int
    """Matrix units per core."""
    mxu_size: int
    """Rows, and columns, of multiply-adders in a matrix unit."""
    mxu_rows_per_cycle: int
    """Rows of a bfloat16 operand that a matrix unit takes per cycle."""
    hbm_bytes_per_second: float
    hbm_bytes: float
    """HBM available to a program."""
    vmem_bytes: int
    """Vector memory per core."""
    ici_bytes_per_second: float
    """Bandwidth of all links to other chips together, one way: half of the published "bidirectional" figure."""
    ici_links: int
    """Links to neighbors: two for each axis of the torus."""
    torus_multiple: int
    """An axis of a slice is a ring if its number of chips is a multiple of this; otherwise its ends are open."""
    dcn_bytes_per_second: float
    """Bandwidth to other slices, one way."""

    @property
    def peak_flops(self) -> float:
        """Peak dense bfloat16 FLOP/s."""
        return PEAK_FLOPS[self.kind]

    @property
    def clock(self) -> float:
        """Cycles per second. Google publishes no clock; it is derived from peak = 2 · multiply-adds per cycle · clock."""
        multiply_adds = self.cores * self.mxus * self.mxu_size**2 * self.mxu_rows_per_cycle
        return self.peak_flops / (2 * multiply_adds)

    @property
    def hbm_bytes_per_cycle(self) -> float:
        """HBM bandwidth over the derived clock."""
        return self.hbm_bytes_per_second / self.clock

    @property
    def link_bytes_per_second(self) -> float:
        """Bandwidth of one link, one way."""
        return self.ici_bytes_per_second / self.ici_links

    def mxu_cycles(self, rows: float) -> float:
        """Return the least number of cycles in which a core can push this many rows through its matrix units."""
        return rows / (self.mxus * self.mxu_rows_per_cycle)


_MiB, _GiB = 2**20, 2**30

# HBM bandwidth and the number of matrix units: cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}, where a GB is 10^9 bytes. Vector memory:
# docs.jax.dev/en/latest/pallas/tpu/hardware.html. The matrix units of v5 are 128×128 (arXiv:2304.01433) and do one multiply-add per cell
# and cycle, which gives clocks of 1.50 GHz for v5e and 1.75 GHz for v5p. The matrix units of v6e and TPU7x are 256×256, two per core
# (JAX's page). We infer that they take two rows per cycle, which gives 1.75 and 2.20 GHz; one row per cycle would mean 3.5 and 4.4 GHz.
# HBM size: the bytes that libtpu reports as available when a program does not fit: 15.75, 95.74, 31.25 and 94.75 GiB per device.
# Links between chips: the same pages publish a "bidirectional inter-chip interconnect (ICI) bandwidth (per chip)" of 400, 1200, 800 and
# 1200 GB/s. Half of it goes each way (older pages give these halves as 1600, 4800 and 3200 Gbit/s), over 4 links of a 2D torus or 6 links
# of a 3D torus. A TPU7x device has half the bandwidth of its chip. An axis is a ring on v5e and v6e if it has 16 chips, and on v5p and
# TPU7x if it has a multiple of 4. DCN: v5p 50 Gbit/s per chip; v5e and v6e 6.4 and 25.6 Tbit/s per pod of 256 chips; TPU7x 100 Gbit/s per
# chip.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("TPU v5 lite", 1, 4, 128, 1, 819e9, 15.75 * _GiB, 128 * _MiB, 200e9, 4, 16, 25e9 / 8),
        Chip("TPU v5", 2, 4, 128, 1, 2765e9, 95.74 * _GiB, 64 * _MiB, 600e9, 6, 4, 50e9 / 8),
        Chip("TPU v6 lite", 1, 2, 256, 2, 1640e9, 31.25 * _GiB, 128 * _MiB, 400e9, 4, 16, 100e9 / 8),
        Chip("TPU7x", 1, 2, 256, 2, 7380e9 / 2, 94.75 * _GiB, 64 * _MiB, 600e9 / 2, 6, 4, 100e9 / 8 / 2),
    )
}


# First part of the name of a slice → kind of its devices.
_SLICES = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}


def chip_of_slice(topology: str) -> Chip:
    """Return the figures of the devices of a slice by its name, such as "v5p:4x4x4".

    Raises:
        PlamoError: there are no published figures for them.
    """
    name = topology.partition(":")[0]
    if name not in _SLICES:
        raise PlamoError(
            f"there are no published figures for the slice {topology!r}: its name must begin with {', '.join(_SLICES)}"
        )
    return chip_of(_SLICES[name])


def chip_of(kind: str) -> Chip:
    """Return the figures of a device kind.

    Raises:
        PlamoError: there are no published figures for it.
    """
    if kind not in CHIPS:
        raise PlamoError(
            f"there are no published figures for the device kind {kind!r}: it must be one of {', '.join(CHIPS)}"
        )
    return CHIPS[kind]
